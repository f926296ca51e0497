
static void read_codes(struct reader *reader, int32_t channel, int32_t stop, uint32_t (*column)[2]) {
    for (; channel < stop; channel++, column++) {
        (*column)[0] = reader->at[0][channel] | (uint32_t)reader->at[1][channel] << 16;
        (*column)[1] = reader->at[2][channel] | (uint32_t)reader->at[3][channel] << 16;
    }
}

/* 8 words are 64 sums of 4 codes, together up to 65280. */
static const struct inputs codes = {4, 16, 8, 0x0000FFFFu, read_codes};
