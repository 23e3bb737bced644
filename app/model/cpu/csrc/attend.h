/* Attention of packed tokens over KV blocks: see attend.c. */

#ifndef ATTEND_H
#define ATTEND_H

#include "numbers.h"

/* Tokens next to each other in one sequence: they share what is loaded of its keys and values. */
struct run {
    int32_t token; /* the first one's place among the packed tokens */
    int32_t sequence;
    int32_t num_seen; /* tokens of the sequence up to the first one, itself included */
    int32_t length;
};

/* Field for field `_Job` in compiled_attention.py. */
struct attend_job {
    const float *query; /* (num_tokens, num_heads, HEAD_DIM) */
    const element *keys, *values; /* (num_blocks, block_size, num_kv_heads, HEAD_DIM) */
    const int32_t *block_tables; /* (num_sequences, table_width) */
    const struct run *runs;
    element *output; /* as query, with output_stride numbers from token to token */
    int64_t num_runs, num_heads, num_kv_heads, block_size, table_width, window, output_stride;
    float scale;
    int64_t next_item; /* starts at 0 */
};

void attend(struct attend_job *job);

#endif
