/* Linear layers: see multiply.c. */

#ifndef MULTIPLY_H
#define MULTIPLY_H

#include "numbers.h"

#ifdef INT8
typedef int8_t stored; /* (panels of 16 columns, depth, 16), whole numbers: see `QuantizedLinear` */
#else
typedef element stored; /* (num_columns, depth), as torch holds it */
#endif

/* A linear layer's own. Field for field `Weights` in compiled_linear.py. */
struct weights {
    const stored *weight;
    const float *scale; /* (num_columns,): what a column's weights are multiplied by; with -DINT8 only */
    const element *bias; /* (num_columns,) or null */
};

/* input times weight transposed, plus bias. Field for field `MultiplyJob` in compiled_linear.py. */
struct multiply_job {
    const element *input; /* (num_rows, depth) */
    struct weights linear;
    struct weights gate; /* of a layer of the same size: the result is times silu of what it gives; or nulls */
    const element *addend; /* (num_rows, num_columns), may be the output; or null */
    element *output; /* (num_rows, num_columns), or null */
    float *wide_output; /* instead of output */
    int64_t num_rows, num_columns, depth;
    int64_t input_stride, output_stride; /* numbers from row to row, of the input, and of output and addend */
    int64_t next_item; /* starts at 0 */
};

void multiply(struct multiply_job *job);

#endif
