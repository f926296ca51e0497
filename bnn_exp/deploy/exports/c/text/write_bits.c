
/* Writes a bit 1 for each sum that reaches its threshold. A bit 1 that is already there stays: this is the max-pooling. */
static void write_bits(const struct layer *layer, int32_t first, int32_t count, uint8_t *result) {
    const int32_t *threshold = layer->gives.bits.thresholds + first;
    result += first / 8;
    for (int32_t i = 0; i < count; result++) {
        uint32_t byte = *result;
        for (uint32_t bit = 1; bit < 256 && i < count; bit <<= 1, i++)
            if (sums[i] >= *threshold++) byte |= bit;
        *result = (uint8_t)byte;
    }
}
