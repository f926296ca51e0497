
#ifdef NETWORK_MAIN
#include <stdio.h>

int main(int count, char **arguments) {
    static uint8_t pixels[NETWORK_PIXELS];
    int64_t scores[NETWORK_CLASSES];
    size_t got;
    FILE *file = count == 2 ? fopen(arguments[1], "rb") : NULL;
    if (!file) {
        fprintf(stderr, "usage: network FILE (raw images of %ld bytes each)\n", (long)NETWORK_PIXELS);
        return 2;
    }
    while ((got = fread(pixels, 1, NETWORK_PIXELS, file)) == NETWORK_PIXELS) {
        const int best = network_classify(pixels, scores);
        printf("%d %s\n", best, network_classes[best]);
    }
    fclose(file);
    if (got) fprintf(stderr, "the last %ld bytes are less than an image\n", (long)got);
    return got ? 1 : 0;
}
#endif
