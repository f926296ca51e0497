
/* Writes the pixels so that the channels of a position stand side by side. */
static void channels_last(const struct layer *layer, const uint8_t *pixels, uint8_t *picture) {
    const int32_t positions = layer->height * layer->width;
    for (int32_t c = 0; c < layer->channels; c++)
        for (int32_t i = 0; i < positions; i++) picture[i * layer->channels + c] = *pixels++;
}
