
/* Writes a bit 1 for each sum that reaches its threshold, beside the bits that are there. */
static void write_bits(const struct layer *layer, int32_t first, int32_t count, uint8_t *result) {
    for (int32_t i = 0, o = first; i < count; i++, o++)
        if (sums[i] >= layer->thresholds[o]) result[o / 8] = (uint8_t)(result[o / 8] | 1u << o % 8);
}
