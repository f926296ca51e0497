
/* Reads the codes of four positions, one in each lane. */
static void read_codes(struct reader *reader, int32_t channel, int32_t stop, uint64_t *column) {
    const uint8_t *const a = reader->at[0], *const b = reader->at[1], *const c = reader->at[2], *const d = reader->at[3];
    for (; channel < stop; channel++)
        *column++ = (a[channel] | (uint32_t)b[channel] << 16) | (uint64_t)(c[channel] | (uint32_t)d[channel] << 16) << 32;
}

/* 8 words are 64 sums of 4 codes, together up to 65280. */
static const struct inputs codes = {4, 16, 8, 0x0000FFFFu, read_codes};
