/* Prepares frames on a Cortex-M in QEMU, line by line, as they come from a camera.
 *
 * Reads frames from the host's file frames.raw: width, height and channels as int32, then the bytes. Writes the `struct result` of
 * each frame to results.raw.
 */
#include "device.h"
#include "network.h"

struct result {
    uint32_t ticks; /* of the three functions */
    int32_t error;
    uint8_t pixels[NETWORK_PIXELS];
};

void reset(void) {
    static uint8_t line[3 * NETWORK_FRAME_MOST];
    static struct result result;
    int32_t frames, results, size[3];
    begin(&frames, "frames.raw", &results);
    while (transfer(SYS_READ, frames, size, sizeof size) == 0) {
        uint32_t before = ticks();
        result.error = network_prepare_begin((int)size[0], (int)size[1], (int)size[2]);
        result.ticks = ticks() - before;
        for (int32_t y = 0; y < size[1]; y++) {
            transfer(SYS_READ, frames, line, (uint32_t)(size[0] * size[2]));
            before = ticks();
            network_prepare_line(line);
            result.ticks += ticks() - before;
        }
        before = ticks();
        result.error |= network_prepare_end(result.pixels);
        result.ticks += ticks() - before;
        transfer(SYS_WRITE, results, &result, sizeof result);
    }
    leave();
}
