/* Checks a build of network.c and network_prepare.c with test vectors. Made by bnn_exp.
 *
 *     cc -std=c99 -O2 network_test.c network.c network_prepare.c -o network_test && ./network_test
 *
 * Each vector is a frame of a camera, its pixels, its class and its scores. Returns 0 if all of them are equal.
 */
#include <stdio.h>
#include <string.h>

#include "network.h"

typedef struct {
    const uint8_t *frame;
    int width, height, channels;
    const uint8_t *pixels;
    int answer;
    const int64_t *scores;
} vector;

/* The test vectors. */

#define COUNT ((int)(sizeof vectors / sizeof vectors[0]))

int main(void) {
    static uint8_t pixels[NETWORK_PIXELS];
    static int64_t scores[NETWORK_CLASSES];
    int wrong = 0;
    for (int i = 0; i < COUNT; i++) {
        const vector *v = &vectors[i];
        const int error = network_prepare(v->frame, v->width, v->height, v->channels, pixels);
        const int other = error || memcmp(pixels, v->pixels, NETWORK_PIXELS) != 0;
        const int answer = network_classify(pixels, scores);
#ifdef PRINT_SCORES
        for (int c = 0; c < NETWORK_CLASSES; c++) printf("%lld%c", (long long)scores[c], c + 1 < NETWORK_CLASSES ? ' ' : '\n');
        (void)other, (void)answer;
#else
        if (other) printf("vector %d: other pixels (network_prepare returned %d)\n", i, error);
        if (answer != v->answer) printf("vector %d: class %d in place of %d\n", i, answer, v->answer);
        if (memcmp(scores, v->scores, sizeof scores) != 0) printf("vector %d: other scores\n", i);
        wrong += other || answer != v->answer || memcmp(scores, v->scores, sizeof scores) != 0;
#endif
    }
#ifndef PRINT_SCORES
    printf("%d of %d test vectors are equal\n", COUNT - wrong, COUNT);
#endif
    return wrong != 0;
}
