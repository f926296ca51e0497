/* A Cortex-M in QEMU, without an operating system: its vectors, a timer that counts instructions, and the files of the host.
 *
 * Semihosting reads and writes the host's files. QEMU runs with `-icount shift=6`: each instruction takes 64 ns of the machine's
 * time, so a timer of the machine counts instructions.
 */
#include <stdint.h>

enum { SYS_OPEN = 1, SYS_WRITE = 5, SYS_READ = 6, SYS_EXIT = 0x18, READ_BYTES = 1, WRITE_BYTES = 5, DONE = 0x20026 };

#ifdef NRF51 /* the timer of the nRF51: 16 MHz */
#define TIMER(offset) (*(volatile uint32_t *)(0x40008000u + (offset)))
static void start_timer(void) { TIMER(0x508) = 3, TIMER(0x510) = 0, TIMER(0) = 1; }
static uint32_t ticks(void) { return TIMER(0x40) = 1, TIMER(0x540); }
#else /* the CMSDK timer of MPS2, 25 MHz, which counts down */
#define TIMER(offset) (*(volatile uint32_t *)(0x40000000u + (offset)))
static void start_timer(void) { TIMER(8) = TIMER(4) = 0xFFFFFFFFu, TIMER(0) = 1; }
static uint32_t ticks(void) { return ~TIMER(4); }
#endif

extern uint32_t stack_top, bss_start, bss_end;
void reset(void);

__attribute__((section(".vectors"), used)) static void *const vectors[] = {&stack_top, reset};

/* Calls an operation of semihosting. */
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

/* Reads or writes. Returns the number of bytes that were not transferred. */
static int32_t transfer(int32_t operation, int32_t file, const void *data, uint32_t size) {
    const uint32_t arguments[] = {(uint32_t)file, (uint32_t)data, size};
    return host(operation, arguments);
}

/* Opens both files, sets the variables to 0, and starts the timer. */
static void begin(int32_t *input, const char *name, int32_t *results) {
    uint32_t length = 0;
    for (uint32_t *word = &bss_start; word < &bss_end; word++) *word = 0;
    while (name[length]) length++;
    *input = open(name, length, READ_BYTES);
    *results = open("results.raw", 11, WRITE_BYTES);
    start_timer();
}

/* Ends QEMU. */
static void leave(void) {
    host(SYS_EXIT, (const void *)DONE);
    for (;;) {
    }
}
