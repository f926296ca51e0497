
/* Writes the code of the mean of each channel over all positions. */
static void average(const struct layer *layer, const uint8_t *picture, uint8_t *result) {
    const uint8_t *const end = picture + layer->height * layer->width * layer->channels;
    for (int32_t c = 0; c < layer->channels; c++) {
        int32_t sum = 0;
        for (const uint8_t *at = picture + c; at < end; at += layer->channels) sum += *at;
        result[c] = (uint8_t)code(sum * layer->gives.codes.factors[0], layer->gives.codes.shifts[0], layer->levels);
    }
}
