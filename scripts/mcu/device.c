/* Runs the exported network on a Cortex-M in QEMU.
 *
 * Reads pictures from the host's file pixels.raw, classifies each picture, and writes its `struct result` to results.raw.
 */
#include "device.h"
#include "network.h"

#define PAINT 0xC0FFEE42u
#define PAINTED 1024 /* words below the stack pointer */

struct result {
    int64_t scores[NETWORK_CLASSES];
    int32_t best;
    uint32_t ticks, stack; /* of network_classify; the stack in bytes */
};

/* Classifies the pixels. Before the call the function fills the stack below it with PAINT, and after the call it looks for
 * the first word that is no longer PAINT. */
__attribute__((noinline)) static void classify(const uint8_t *pixels, struct result *result) {
    uint32_t *const stack = (uint32_t *)__builtin_frame_address(0) - 32;
    volatile uint32_t *word = stack - PAINTED;
    uint32_t before;
    while (word < stack) *word++ = PAINT;
    before = ticks();
    result->best = network_classify(pixels, result->scores);
    result->ticks = ticks() - before;
    for (word = stack - PAINTED; *word == PAINT; word++) {
    }
    result->stack = (uint32_t)((stack - (uint32_t *)word) * 4);
}

void reset(void) {
    static uint8_t pixels[NETWORK_PIXELS];
    static struct result result;
    int32_t pictures, results;
    begin(&pictures, "pixels.raw", &results);
    while (transfer(SYS_READ, pictures, pixels, sizeof pixels) == 0) {
        classify(pixels, &result);
        transfer(SYS_WRITE, results, &result, sizeof result);
    }
    leave();
}
