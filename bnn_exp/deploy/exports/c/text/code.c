
/* Returns x / 2^shift, rounded half to even, but at least 0 and at most `levels`. */
static int32_t code(int32_t x, int32_t shift, int32_t levels) {
    uint32_t positive, half;
    if (x <= 0) return 0;
    positive = (uint32_t)x;
    half = (((UINT32_C(1) << shift) - 1u) + (positive >> shift & 1u)) >> 1;
    return least((int32_t)((positive + half) >> shift), levels);
}
