
/* A bit counts as 0 or 2. Where x is -1 or 1, no input counts as 1, half way. So one threshold holds at the border too. */
static void read_bits(struct reader *reader, int32_t channel, int32_t stop, uint32_t (*column)[2]) {
    for (; channel < stop; channel++, column++) {
        for (int32_t h = 0; h < 2; h++) {
            const uint8_t *const *at = reader->at + 4 * h;
            if (channel % 8 == 0) {
                reader->bytes[h] = at[0][channel / 8] | (uint32_t)at[1][channel / 8] << 8 |
                                   (uint32_t)at[2][channel / 8] << 16 | (uint32_t)at[3][channel / 8] << 24;
            }
            (*column)[h] = 2 * (reader->bytes[h] >> channel % 8 & 0x01010101u) + (uint32_t)-ZERO * reader->outside[h];
        }
    }
}

/* 3 words are 24 sums of 4 bits, together up to 192. */
static const struct inputs bits = {8, 8, 3, 0x00FF00FFu, read_bits};
