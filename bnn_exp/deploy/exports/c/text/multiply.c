
/* A dense layer of bits: counts the ones in words of 32 bits. */

static uint32_t row[@row@]; /* the inputs */

/* Returns the number of bits that are 1 in both x and w. */
static int32_t common(const uint32_t *x, const uint32_t *w, int32_t words) {
    int32_t total = 0;
    while (words > 0) {
        const int32_t stop = least(words, 31); /* each byte of `bytes` counts up to 8 ones a word */
        uint32_t bytes = 0;
        for (int32_t i = 0; i < stop; i++) {
            uint32_t ones = x[i] & w[i];
            ones -= ones >> 1 & 0x55555555u;
            ones = (ones & 0x33333333u) + (ones >> 2 & 0x33333333u);
            bytes += (ones + (ones >> 4)) & 0x0F0F0F0Fu;
        }
        bytes = (bytes & 0x00FF00FFu) + (bytes >> 8 & 0x00FF00FFu);
        total += (int32_t)((bytes + (bytes >> 16)) & 0xFFFFu);
        words -= stop, x += stop, w += stop;
    }
    return total;
}

/* Multiplies all bits of a picture, as one row of whole bytes. */
static void multiply(const struct layer *layer, const uint8_t *picture, uint8_t *result) {
    const uint32_t *weights = layer->weights;
    int32_t all;
    memset(row, 0, sizeof row);
    memset(result, 0, (size_t)layer->result_bytes);
    for (int32_t i = 0; i < layer->channels / 8; i++) row[i / 4] |= (uint32_t)picture[i] << (i % 4 * 8);
    all = common(row, row, layer->words);
    for (int32_t first = 0; first < layer->outputs; first += BLOCK) {
        const int32_t count = least(BLOCK, layer->outputs - first);
        for (int32_t i = 0; i < count; i++, weights += layer->words)
            sums[i] = SUM(common(row, weights, layer->words), all);
        layer->write(layer, first, count, result);
    }
}
