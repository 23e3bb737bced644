/* A decoder layer in one call: see layer.c. */

#ifndef LAYER_H
#define LAYER_H

#include "attend.h"
#include "multiply.h"

/* GOMP_parallel(work, job, num_threads, flags) of the OpenMP runtime that torch computes with. */
typedef void (*team)(void (*work)(void *), void *job, unsigned num_threads, unsigned flags);

/* Between rows that are multiplied: at distances of a power of two they would compete for the same cache lines. */
#define PADDING (64 / (int64_t)sizeof(element))

/* What all layers are given in a step. Field for field `_Step` in compiled_layer.py. */
struct step {
    const element *cosines, *sines; /* (num_tokens, HEAD_DIM): the rotation of each token's position */
    const int64_t *slots; /* (num_tokens,): each token's place for keys and values in the cache */
    const int64_t *sources, *targets; /* (num_copies,): slots copied in this order after that */
    element *normal; /* (num_tokens, hidden_size + PADDING), to work in, as are the following */
    float *query, *key, *value; /* (num_tokens, num_heads or num_kv_heads, HEAD_DIM) */
    element *attended; /* (num_tokens, num_heads * HEAD_DIM + PADDING) */
    element *gated; /* (num_tokens, intermediate_size + PADDING) */
    const int32_t *block_tables;
    const struct run *runs;
    int64_t num_tokens, num_copies, num_runs, block_size, table_width;
    team run_in_team;
    int64_t num_threads;
};

/* What a layer is made of. Field for field `_Layer` in compiled_layer.py. */
struct layer {
    const element *input_norm, *output_norm; /* (hidden_size,): before attention and before the feed-forward */
    const element *query_norm, *key_norm; /* (HEAD_DIM,) or null */
    struct multiply_job query, key, value, output, up, down; /* weights and their sizes only */
    int64_t num_heads, num_kv_heads, hidden_size, window;
    float input_epsilon, output_epsilon, query_epsilon, key_epsilon, scale;
};

void compute_layer(const struct layer *layer, const struct step *step, const element *input, element *output,
                   element *keys, element *values);

#endif
