
/* Inverts bits at all positions: an inverted output is 1 if no sum of its window reaches the threshold. */
static void invert(const struct layer *layer, uint8_t *result) {
    for (const uint8_t *const end = result + layer->result_size; result < end; result += layer->result_bytes)
        for (int32_t i = 0; i < layer->result_bytes; i++) result[i] ^= layer->inverted[i];
}
