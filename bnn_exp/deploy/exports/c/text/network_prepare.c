/* Turns a frame of a camera into the pixels of the network, as bnn_exp does for an image: to the last bit. Made by bnn_exp.
 *
 *     network_prepare(frame, width, height, channels, pixels) == 0 && network_classify(pixels, scores)
 *
 * Colours become grey first, if the network takes grey pixels. Then a bicubic filter (a = -0.5) resizes the lines of the
 * frame, and then the columns of the result. Where a frame becomes smaller, the filter is as wide as an output pixel
 * (antialiasing). Both steps multiply by integers, round, and clip to 8 bits. Only the filter's weights need double numbers.
 *
 * A fused multiply-add rounds otherwise. The pragmas below turn it off in gcc and clang; -ffast-math must be off too.
 * Memory: static variables only, see NETWORK_PREPARE_BYTES in network.h. So only one frame can be prepared at a time.
 */
#include "network.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#define CHANNELS NETWORK_CHANNELS
#define LONGER (NETWORK_WIDTH > NETWORK_HEIGHT ? NETWORK_WIDTH : NETWORK_HEIGHT)
#define ONE 4194304 /* the weight 1 */

/* One direction, horizontal or vertical: `in` pixels of the frame become `out` pixels, which begin at pixel `at`. */
typedef struct {
    int32_t in, out, at;
    float begin, end;      /* the part of the frame that is shown */
    int32_t first[LONGER]; /* the first pixel of the frame that an output pixel reads */
    int32_t count[LONGER]; /* the number of these pixels */
    int32_t place[LONGER]; /* the place of their weights */
    int32_t weights[4 * NETWORK_FRAME_MOST + 5 * LONGER];
} direction;

static direction across, down;
static direction *along, *over; /* along the lines of the frame, and over its lines; a line may be a column */
static int frame_channels;
static int32_t lines;                              /* the number of lines so far */
static uint8_t line[CHANNELS][NETWORK_FRAME_MOST]; /* a line of the frame, in the channels of the network */
static uint8_t small[CHANNELS * LONGER];           /* the resized line: channel, pixel */
static int32_t sums[NETWORK_PIXELS];               /* the sums of weighted pixels: resized line, channel, pixel */

static double bicubic(double x) {
    if (x < 0.0) x = -x;
    if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1.0;
    if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5;
    return 0.0;
}

/* Returns the nearest integer to a weight. */
static int32_t rounded(double share) {
    share *= ONE;
    return (int32_t)(share < 0.0 ? share - 0.5 : share + 0.5);
}

/* Fills in the pixels that each output pixel reads, and their weights: values of the filter, as shares of their total. */
static void measure(direction *d) {
    const float part = d->end - d->begin;
    const double scale = (double)part / d->out; /* pixels of the frame for each output pixel */
    const double wide = scale < 1.0 ? 1.0 : scale, inverse = 1.0 / wide, reach = 2.0 * wide;
    int32_t place = 0;
    for (int32_t i = 0; i < d->out; place += d->count[i++]) {
        const double middle = d->begin + (i + 0.5) * scale;
        int32_t first = (int32_t)(middle - reach + 0.5), end = (int32_t)(middle + reach + 0.5);
        double total = 0.0;
        if (first < 0) first = 0;
        if (end > d->in) end = d->in;
        d->first[i] = first, d->count[i] = end - first, d->place[i] = place;
        for (int32_t n = first; n < end; n++) total += bicubic((n - middle + 0.5) * inverse);
        if (total == 0.0) total = 1.0;
        for (int32_t n = first; n < end; n++)
            d->weights[place + n - first] = rounded(bicubic((n - middle + 0.5) * inverse) / total);
    }
}

static uint8_t clipped(int32_t sum) {
    if (sum < 0) return 0;
    return (uint8_t)(sum / ONE > 255 ? 255 : sum / ONE);
}

#if NETWORK_FIT == NETWORK_PAD
/* Returns the nearest whole number to x >= 0; of two, the even one. */
static int32_t nearest(double x) {
    const int32_t whole = (int32_t)x;
    const double rest = x - whole;
    return whole + (rest > 0.5 || (rest == 0.5 && whole % 2));
}
#endif

/* Decides which part of the frame is shown, and where. */
static void place(int32_t width, int32_t height) {
    across.in = width, across.out = NETWORK_WIDTH, across.at = 0, across.begin = 0.0f, across.end = (float)width;
    down.in = height, down.out = NETWORK_HEIGHT, down.at = 0, down.begin = 0.0f, down.end = (float)height;
#if NETWORK_FIT == NETWORK_CROP
    {
        const double wanted = (double)NETWORK_WIDTH / NETWORK_HEIGHT, ratio = (double)width / height;
        const double wide = ratio > wanted ? wanted * height : width, high = ratio < wanted ? width / wanted : height;
        const double left = (width - wide) * 0.5, top = (height - high) * 0.5;
        across.begin = (float)left, across.end = (float)(left + wide);
        down.begin = (float)top, down.end = (float)(top + high);
    }
#elif NETWORK_FIT == NETWORK_PAD
    {
        const double wanted = (double)NETWORK_WIDTH / NETWORK_HEIGHT, ratio = (double)width / height;
        if (ratio > wanted) down.out = nearest((double)height / width * NETWORK_WIDTH);
        if (ratio < wanted) across.out = nearest((double)width / height * NETWORK_HEIGHT);
        across.at = nearest((NETWORK_WIDTH - across.out) * 0.5), down.at = nearest((NETWORK_HEIGHT - down.out) * 0.5);
    }
#endif
}

#if CHANNELS == 1
/* Returns the luminance of a pixel: red, green, blue. */
static uint8_t grey(const uint8_t *pixel) {
    return (uint8_t)((pixel[0] * UINT32_C(19595) + pixel[1] * UINT32_C(38470) + pixel[2] * UINT32_C(7471) + 32768) >> 16);
}
#endif

/* Copies a line of the frame to `line`, in the channels of the network. `step`: bytes from one pixel to the next. */
static void take(const uint8_t *pixel, int32_t step) {
#if CHANNELS == 1
    uint8_t *to = line[0];
    if (frame_channels == 3)
        for (int32_t i = 0; i < along->in; i++, pixel += step) *to++ = grey(pixel);
    else
        for (int32_t i = 0; i < along->in; i++, pixel += step) *to++ = *pixel;
#else
    for (int c = 0; c < CHANNELS; c++) {
        const uint8_t *from = pixel + (frame_channels == 3 ? c : 0);
        for (int32_t i = 0; i < along->in; i++, from += step) line[c][i] = *from;
    }
#endif
}

/* Resizes `line` to `small`. */
static void resize(void) {
    uint8_t *to = small;
    for (int c = 0; c < CHANNELS; c++) {
        const int32_t *w = along->weights;
        for (int32_t i = 0; i < along->out; i++) {
            const uint8_t *pixel = line[c] + along->first[i], *const end = pixel + along->count[i];
            int32_t sum = ONE / 2;
            while (pixel < end) sum += *pixel++ * *w++;
            *to++ = clipped(sum);
        }
    }
}

/* Adds the next line of the frame to the sums of all output pixels that read this line. */
static void add(const uint8_t *pixel, int32_t step) {
    const int32_t last = over->out - 1, bytes = along->out * CHANNELS, n = lines++;
    if (last < 0 || n < over->first[0] || n >= over->first[last] + over->count[last]) return;
    take(pixel, step);
    resize();
    for (int32_t i = 0; i <= last; i++) {
        const int32_t k = n - over->first[i];
        if (k >= 0 && k < over->count[i]) {
            const int32_t w = over->weights[over->place[i] + k];
            for (int32_t b = 0; b < bytes; b++) sums[i * bytes + b] += w * small[b];
        }
    }
}

int network_prepare_begin(int width, int height, int channels) {
    const int known = width == across.in && height == down.in; /* the weights are those of the last frame */
    if (channels != 1 && channels != 3) return NETWORK_WRONG_CHANNELS;
    if (width < 1 || height < 1 || width > NETWORK_FRAME_MOST || height > NETWORK_FRAME_MOST) return NETWORK_WRONG_SIZE;
    frame_channels = channels, lines = 0, along = &across, over = &down;
    place(width, height);
#if NETWORK_COLUMNS_FIRST == 2
    if (height > down.out && height - down.out > 2 * (width - across.out)) along = &down, over = &across;
#elif NETWORK_COLUMNS_FIRST
    if (height > down.out && height > NETWORK_COLUMNS_FIRST * width) along = &down, over = &across;
#endif
    if (!known) measure(&across), measure(&down);
    for (int32_t i = 0; i < NETWORK_PIXELS; i++) sums[i] = ONE / 2;
    return along == &across ? 0 : NETWORK_NEEDS_FRAME;
}

void network_prepare_line(const uint8_t *pixel) {
    if (lines < over->in) add(pixel, frame_channels);
}

int network_prepare_end(uint8_t *pixels) {
    static const uint8_t background[CHANNELS] = NETWORK_BACKGROUND;
    const int32_t plane = NETWORK_WIDTH * NETWORK_HEIGHT;
    const int by_lines = along == &across;
    for (int32_t i = 0; i < NETWORK_PIXELS; i++) pixels[i] = background[i / plane];
    for (int32_t y = 0; y < down.out; y++)
        for (int32_t x = 0; x < across.out; x++)
            for (int c = 0; c < CHANNELS; c++) {
                const int32_t from = by_lines ? (y * CHANNELS + c) * across.out + x : (x * CHANNELS + c) * down.out + y;
                pixels[c * plane + (down.at + y) * NETWORK_WIDTH + across.at + x] = clipped(sums[from]);
            }
    return lines == over->in ? 0 : NETWORK_WRONG_SIZE;
}

int network_prepare(const uint8_t *frame, int width, int height, int channels, uint8_t *pixels) {
    const int error = network_prepare_begin(width, height, channels), by_lines = error == 0;
    const int32_t step = by_lines ? channels : channels * width, next = by_lines ? channels * width : channels;
    if (error && error != NETWORK_NEEDS_FRAME) return error;
    for (int32_t n = 0; n < over->in; n++) add(frame + n * next, step);
    return network_prepare_end(pixels);
}
