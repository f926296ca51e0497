
/* Writes the scores scale * sum + offset. */
static void write_scores(const struct layer *layer, int32_t first, int32_t count, uint8_t *result) {
    int64_t *const scores = (int64_t *)(void *)result;
    for (int32_t i = 0, o = first; i < count; i++, o++)
        scores[o] = layer->gives.scores.scales[o] * sums[i] + layer->gives.scores.offsets[o];
}
