/* A binary network in C99: integers from the pixels to the scores, no dependencies, no allocation. Made by bnn_exp.
 *
 *     cc -std=c99 -O2 -DNETWORK_MAIN network.c -o network && ./network pixels.raw
 *
 * prints the class of each image in a file of raw pixels, NETWORK_PIXELS bytes an image (channels, rows, columns).
 *
 * A layer sums x * w over its inputs x. Its weight w is 1 for a bit 1 and ZERO for a bit 0. So a sum follows from the sum over
 * the inputs whose weight is a bit 1, and from the sum over all inputs.
 */
#include <string.h>

#include "network.h"

#define ZERO (@zero@)
#define SUM(with_ones, all) ((1 - ZERO) * (with_ones) + ZERO * (all))
#define WORD 32  /* weights in a word */
#define BLOCK @block@ /* outputs that are computed together, at most */

/* A layer is a convolution of stride 1 over a picture, padded to the same size, then max-pooling. A dense layer is a
 * convolution of size 1 over a picture of one position. A picture lies in memory row by row, and the channels of a position
 * stand side by side. A channel is a code, which is one byte, or a bit: bit j of byte i of a position is channel 8i + j. */
struct layer {
    uint16_t height, width;        /* of the picture that the layer reads */
    int32_t channels;
    uint8_t size, pool;            /* the sides of the kernel and of the pooling windows */
    uint8_t levels;                /* the greatest code that the layer gives */
    uint16_t outputs, words;       /* words of weights, for each output */
    int32_t result_bytes;          /* of a position that the layer gives */
    const uint32_t *weights;
    const uint8_t *padding;        /* the channels of a position outside the picture */
    const struct inputs *inputs;   /* what the layer reads */

    /* Turns the sums of the outputs from `first` on into results of one position. */
    void (*write)(const struct layer *layer, int32_t first, int32_t count, uint8_t *result);
    union {
        struct {
            const int32_t *bias, *factors;
            const uint8_t *shifts; /* code = (sum + bias) * factor / 2^shift, rounded */
        } codes;
        struct {
            const int32_t *thresholds;
            const uint8_t *inverted;
        } bits;
        struct {
            const int64_t *scales, *offsets;
        } scores;
    } gives;
};

const char *const network_classes[NETWORK_CLASSES] = {@names@};

static int32_t sums[BLOCK]; /* the sums of a block of outputs, which layer->write reads */

static int32_t least(int32_t a, int32_t b) {
    return a < b ? a : b;
}
