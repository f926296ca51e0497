/* A binary network; see network.c. Made by bnn_exp. */
#ifndef NETWORK_H
#define NETWORK_H

#include <stdint.h>

#define NETWORK_PIXELS @pixels@ /* uint8: @shape@ */
#define NETWORK_CLASSES @classes@

/* Memory in bytes. All arrays are static, so the stack holds the frames of a few functions. */
#define NETWORK_FLASH @flash@ /* all constants, without the code */
#define NETWORK_RAM @ram@ /* all variables, without the pixels and the scores */
#define NETWORK_STACK 512 /* more than a Cortex-M needs, compiled by gcc -O2 or -Os */

#ifdef __cplusplus
extern "C" {
#endif

extern const char *const network_classes[NETWORK_CLASSES];

/* Returns the class of an image: the first one with the highest score. Writes NETWORK_CLASSES scores.
 * The function keeps its variables in static memory, so two calls must not overlap. */
int network_classify(const uint8_t *pixels, int64_t *scores);

#ifdef __cplusplus
}
#endif
#endif
