
/* Writes a score 1 for each sum that reaches its threshold, else 0; an inverted output the other way round. */
static void write_steps(const struct layer *layer, int32_t first, int32_t count, uint8_t *result) {
    int64_t *const scores = (int64_t *)(void *)result;
    for (int32_t i = 0, o = first; i < count; i++, o++)
        scores[o] = (sums[i] >= layer->gives.bits.thresholds[o]) ^ (layer->gives.bits.inverted[o / 8] >> o % 8 & 1);
}
