
/* Inverts bits at all positions: an inverted output is 1 if no sum of its window reaches the threshold. */
static void invert(const struct layer *layer, uint8_t *result) {
    for (int32_t row = layer->pool; row <= layer->height; row += layer->pool)
        for (int32_t column = layer->pool; column <= layer->width; column += layer->pool)
            for (int32_t i = 0; i < layer->result_bytes; i++) *result++ ^= layer->gives.bits.inverted[i];
}
