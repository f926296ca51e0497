
/* Writes codes. A code that is already there stays if it is greater: this is the max-pooling. */
static void write_codes(const struct layer *layer, int32_t first, int32_t count, uint8_t *result) {
    for (int32_t i = 0, o = first; i < count; i++, o++) {
        const int32_t scaled = (sums[i] + layer->gives.codes.bias[o]) * layer->gives.codes.factors[o];
        const int32_t found = code(scaled, layer->gives.codes.shifts[o], layer->levels);
        if (found > result[o]) result[o] = (uint8_t)found;
    }
}
