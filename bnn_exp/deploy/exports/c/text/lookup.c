
/* Convolutions by look-up.
 *
 * A table holds the 16 sums of the subsets of 4 inputs, and 4 bits of weights are the number of a sum. All outputs share the
 * tables. A sum has lanes: each lane belongs to another position of the result, and one addition adds all lanes. 64 bits hold
 * 4 lanes of 16 bits for codes, or 8 lanes of 8 bits for bits. Before lanes can overflow they are added to totals, which have
 * twice as many bits. */

#define LANES 8 /* the most lanes of a sum */

struct reader { /* walks over the inputs of a patch of the picture: kernel rows, kernel columns, channels */
    int32_t row, column, channel;
    int32_t bytes;            /* of a position of the picture */
    const uint8_t *at[LANES]; /* the channels at this place of the kernel, for each lane */
    uint64_t bits, outside;   /* see read_bits */
};

struct inputs { /* a kind of channels */
    int32_t lanes;
    int32_t lane_bits;
    int32_t words; /* the number of words of weights after which the lanes are added to the totals */
    uint32_t even; /* a mask of the lanes 0, 2, ... in 32 bits */
    void (*read)(struct reader *reader, int32_t channel, int32_t stop, uint64_t *column);
};

static struct place { /* a position of the convolution, and where its results go */
    int32_t row, column;
    uint8_t *result;
} places[LANES];

static uint64_t columns[WORD];           /* the lanes of each input */
static uint64_t tables[16][WORD / 4];    /* [e][g]: the sum of those columns 4g + j for which bit j of e is 1 */
static uint64_t lanes[BLOCK + 1];        /* the sums of the outputs so far, then the sum of all inputs */
static uint32_t totals[BLOCK + 1][2][2]; /* of the lower and the upper half of the lanes, of even and odd ones */

/* Points the reader to the inputs of each lane at its place of the kernel. */
static void aim(const struct layer *layer, const uint8_t *picture, struct reader *reader) {
    const int32_t up = reader->row - layer->size / 2, left = reader->column - layer->size / 2;
    reader->outside = 0;
    for (int32_t i = 0; i < layer->inputs->lanes; i++) {
        const int32_t row = places[i].row + up, column = places[i].column + left;
        if (row >= 0 && row < layer->height && column >= 0 && column < layer->width) {
            reader->at[i] = picture + (row * layer->width + column) * reader->bytes;
        } else {
            reader->at[i] = layer->padding;
            reader->outside |= (uint64_t)1 << 8 * i;
        }
    }
}

/* Reads up to WORD columns, and returns their number: 0 after the last one. */
static int32_t read_columns(const struct layer *layer, const uint8_t *picture, struct reader *reader) {
    int32_t n = 0;
    while (n < WORD && reader->row < layer->size) {
        const int32_t channel = reader->channel, stop = least(layer->channels, channel + WORD - n);
        if (channel == 0) aim(layer, picture, reader);
        layer->inputs->read(reader, channel, stop, columns + n);
        n += stop - channel;
        reader->channel = stop;
        if (stop < layer->channels) continue;
        reader->channel = 0;
        if (++reader->column < layer->size) continue;
        reader->column = 0;
        reader->row++;
    }
    return n;
}

#define PUT(e, sum) tables[e][g] = (sum), tables[(e) + 8][g] = (sum) + d

/* Fills the tables of n columns. */
static void make_tables(int32_t n) {
    for (int32_t g = 0; 4 * g < n; g++) {
        const uint64_t a = columns[4 * g], b = columns[4 * g + 1], c = columns[4 * g + 2], d = columns[4 * g + 3];
        PUT(1, a);
        PUT(2, b);
        PUT(3, a + b);
        PUT(4, c);
        PUT(5, a + c);
        PUT(6, b + c);
        PUT(7, a + b + c);
        tables[8][g] = d;
    }
}

#define LOOK_UP(g) sum += tables[w >> (4 * g) & 15][g]

/* Adds the columns whose weight is a bit 1 to the lanes of each output. */
static void look_up(const uint32_t *weights, int32_t count, uint64_t *output) {
    for (int32_t i = 0; i < count; i++) {
        const uint32_t w = weights[i];
        uint64_t sum = output[i];
        LOOK_UP(0), LOOK_UP(1), LOOK_UP(2), LOOK_UP(3), LOOK_UP(4), LOOK_UP(5), LOOK_UP(6), LOOK_UP(7);
        output[i] = sum;
    }
}

/* Adds the lanes to the totals, which are new the first time, and clears the lanes. */
static void add_to_totals(const struct inputs *inputs, int32_t count, int32_t is_first) {
    const uint32_t even = inputs->even;
    const int32_t odd = inputs->lane_bits;
    for (int32_t i = 0; i < count; i++) {
        const uint32_t low = (uint32_t)lanes[i], high = (uint32_t)(lanes[i] >> 32);
        if (is_first) totals[i][0][0] = totals[i][0][1] = totals[i][1][0] = totals[i][1][1] = 0;
        totals[i][0][0] += low & even;
        totals[i][0][1] += low >> odd & even;
        totals[i][1][0] += high & even;
        totals[i][1][1] += high >> odd & even;
        lanes[i] = 0;
    }
}

/* Computes the totals of `count` outputs. */
static void add_up(const struct layer *layer, const uint8_t *picture, const uint32_t *weights, int32_t count) {
    const struct inputs *const inputs = layer->inputs;
    struct reader reader;
    int32_t n, words = 0, is_first = 1;
    reader.row = reader.column = reader.channel = 0;
    reader.bytes = inputs->lane_bits == 16 ? layer->channels : (layer->channels + 7) / 8;
    while ((n = read_columns(layer, picture, &reader)) > 0) {
        const uint32_t all = 0xFFFFFFFFu >> (WORD - n);
        make_tables(n);
        look_up(weights, count, lanes);
        look_up(&all, 1, lanes + count);
        weights += count;
        if (++words < inputs->words) continue;
        add_to_totals(inputs, count + 1, is_first);
        words = is_first = 0;
    }
    add_to_totals(inputs, count + 1, is_first);
}

/* Takes the sums of a lane from the totals. */
static void take_sums(const struct inputs *inputs, int32_t lane, int32_t count) {
    const int32_t half = inputs->lanes / 2, high = lane >= half, i = lane - high * half, shift = i / 2 * 16;
    const uint32_t mask = half == 2 ? 0xFFFFFFFFu : 0x0000FFFFu, *total = &totals[0][high][i % 2];
    const int32_t all = (int32_t)(total[4 * count] >> shift & mask);
    for (int32_t o = 0; o < count; o++, total += 4) sums[o] = SUM((int32_t)(*total >> shift & mask), all);
}

/* Computes the results of the first n places. */
static void compute(const struct layer *layer, const uint8_t *picture, int32_t n) {
    const uint32_t *weights = layer->weights;
    for (int32_t i = n; i < layer->inputs->lanes; i++) places[i] = places[0];
    for (int32_t first = 0; first < layer->outputs; first += BLOCK) {
        const int32_t count = least(BLOCK, layer->outputs - first);
        add_up(layer, picture, weights, count);
        weights += layer->words * count;
        for (int32_t i = 0; i < n; i++) {
            take_sums(layer->inputs, i, count);
            layer->write(layer, first, count, places[i].result);
        }
    }
}

/* Computes a layer: visits all positions of the picture, window by window of the pooling. */
static void convolve(const struct layer *layer, const uint8_t *picture, uint8_t *result) {
    const int32_t pool = layer->pool;
    int32_t n = 0;
    for (int32_t row = 0; row + pool <= layer->height; row += pool) {
        for (int32_t column = 0; column + pool <= layer->width; column += pool, result += layer->result_bytes) {
            memset(result, 0, (size_t)layer->result_bytes);
            for (int32_t i = 0; i < pool; i++) {
                for (int32_t j = 0; j < pool; j++) {
                    places[n].row = row + i;
                    places[n].column = column + j;
                    places[n].result = result;
                    if (++n < layer->inputs->lanes) continue;
                    compute(layer, picture, n);
                    n = 0;
                }
            }
        }
    }
    if (n) compute(layer, picture, n);
}
