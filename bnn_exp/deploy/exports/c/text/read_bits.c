
/* Returns byte number `byte` of four positions in one word. */
static uint32_t four(const uint8_t *const *at, int32_t byte) {
    return at[0][byte] | (uint32_t)at[1][byte] << 8 | (uint32_t)at[2][byte] << 16 | (uint32_t)at[3][byte] << 24;
}

/* Reads a bit as 0 or 2. If bits stand for -1 and 1, a place outside the picture counts as 1, half way between. So one
 * threshold serves the border too. */
static void read_bits(struct reader *reader, int32_t channel, int32_t stop, uint64_t *column) {
    const uint64_t outside = (uint64_t)-ZERO * reader->outside;
    uint64_t bits = reader->bits;
    for (; channel < stop; channel++) {
        if (channel % 8 == 0) bits = four(reader->at, channel / 8) | (uint64_t)four(reader->at + 4, channel / 8) << 32;
        *column++ = 2 * (bits & 0x0101010101010101u) + outside;
        bits >>= 1;
    }
    reader->bits = bits;
}

/* 3 words are 24 sums of 4 bits, together up to 192. */
static const struct inputs bits = {8, 8, 3, 0x00FF00FFu, read_bits};
