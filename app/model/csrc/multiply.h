/* Linear layers: see multiply.c. */

#ifndef MULTIPLY_H
#define MULTIPLY_H

#include "numbers.h"

/* input times weight transposed, plus bias. Field for field `MultiplyJob` in compiled_linear.py. */
struct multiply_job {
    const element *input; /* (num_rows, depth) */
    const element *weight; /* (num_columns, depth), as torch holds it */
    const element *bias; /* (num_columns,) or null */
    const element *gate, *gate_bias; /* as weight and bias: the result is times silu of the product with it; or null */
    const element *addend; /* (num_rows, num_columns), may be the output; or null */
    element *output; /* (num_rows, num_columns), or null */
    float *wide_output; /* where there is no output */
    int64_t num_rows, num_columns, depth;
    int64_t input_stride, output_stride; /* numbers from row to row, of the input, and of output and addend */
    int64_t next_item; /* starts at 0 */
};

void multiply(struct multiply_job *job);

#endif
