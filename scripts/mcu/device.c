/* Runs the exported network on a Cortex-M in QEMU, without an operating system.
 *
 * Reads pictures from the file pixels.raw of the host, classifies each, and writes a `struct result` each to results.raw. The
 * host's files are reached by semihosting. QEMU runs with `-icount shift=6`: each instruction takes 64 ns of the machine's time,
 * so a timer of the machine counts instructions.
 */
#include "network.h"

enum { SYS_OPEN = 1, SYS_WRITE = 5, SYS_READ = 6, SYS_EXIT = 0x18, READ_BYTES = 1, WRITE_BYTES = 5, DONE = 0x20026 };

#define PAINT 0xC0FFEE42u
#define PAINTED 1024 /* words below the stack pointer */

#ifdef NRF51 /* the timer of the nRF51: 16 MHz */
#define TIMER(offset) (*(volatile uint32_t *)(0x40008000u + (offset)))
static void start_timer(void) { TIMER(0x508) = 3, TIMER(0x510) = 0, TIMER(0) = 1; }
static uint32_t ticks(void) { return TIMER(0x40) = 1, TIMER(0x540); }
#else /* the CMSDK timer of MPS2, 25 MHz, which counts down */
#define TIMER(offset) (*(volatile uint32_t *)(0x40000000u + (offset)))
static void start_timer(void) { TIMER(8) = TIMER(4) = 0xFFFFFFFFu, TIMER(0) = 1; }
static uint32_t ticks(void) { return ~TIMER(4); }
#endif

struct result {
    int64_t scores[NETWORK_CLASSES];
    int32_t best;
    uint32_t ticks, stack; /* of network_classify; the stack in bytes */
};

extern uint32_t stack_top, bss_start, bss_end;
void reset(void);

__attribute__((section(".vectors"), used)) static void *const vectors[] = {&stack_top, reset};

static int32_t host(int32_t operation, const void *arguments) {
    register int32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = arguments;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static int32_t open(const char *name, uint32_t length, uint32_t mode) {
    const uint32_t arguments[] = {(uint32_t)name, mode, length};
    return host(SYS_OPEN, arguments);
}

/* Reads or writes; returns the number of bytes that are left. */
static int32_t transfer(int32_t operation, int32_t file, const void *data, uint32_t size) {
    const uint32_t arguments[] = {(uint32_t)file, (uint32_t)data, size};
    return host(operation, arguments);
}

/* Classifies the pixels. The stack below this function is painted before the call, and searched for paint after it. */
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
    for (uint32_t *word = &bss_start; word < &bss_end; word++) *word = 0;
    pictures = open("pixels.raw", 10, READ_BYTES);
    results = open("results.raw", 11, WRITE_BYTES);
    start_timer();
    while (transfer(SYS_READ, pictures, pixels, sizeof pixels) == 0) {
        classify(pixels, &result);
        transfer(SYS_WRITE, results, &result, sizeof result);
    }
    host(SYS_EXIT, (const void *)DONE);
    for (;;) {
    }
}
