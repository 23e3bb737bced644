/* Linear layers: input times weight transposed, plus bias, for any number of rows of input.
 *
 * The weight stays as torch holds it, (num_columns, depth), and there is no second copy. A thread takes some columns
 * and turns them on the way, a panel at a time, so that they lie side by side in its cache; then each number of input
 * is multiplied with a whole panel's width, and a tile of sums stays in registers (Goto and van de Geijn 2008,
 * "Anatomy of high-performance matrix multiplication"). Turning costs a third of a cycle a number, which with few rows
 * passes while memory brings the next ones, and with many is little beside the products.
 *
 * A sum is added up in the order of the depth whatever the number of rows: what a row gets depends on that row and on
 * the weight only, to the last bit, not on other rows or on threads. Sums are float32. */

#include "multiply.h"

#ifdef __AVX512F__
#define MAX_ROWS 14 /* 28 sums, 2 vectors of weight and one of input: 31 of 32 registers */
#else
#define MAX_ROWS 6
#endif
#define WIDTH (2 * LANES) /* columns of a panel */
#define SHALLOW 64 /* units of a panel: 8 KiB, so that with few rows memory is never idle for long */
#define DEEP 256 /* with many rows: 32 KiB, so that sums are seldom moved */
#define FEW_ROWS 64
#define ROW_BLOCK 252

/* A unit is what one step along the depth multiplies: a number, or two where the CPU has bfloat16. */
#if defined(BFLOAT16) && defined(__AVX512BF16__)
#define PER_UNIT 2
typedef vector units;
static inline units load_units(const element *values) {
    units x;
    __builtin_memcpy(&x, values, sizeof x);
    return x;
}
static inline float unit_of(const element *values) {
    float x;
    __builtin_memcpy(&x, values, sizeof x);
    return x;
}
static inline vector multiply_add(vector a, vector b, vector sums) {
    return (vector)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
}
#else
#define PER_UNIT 1
static inline vector load_units(const element *values) {
    elements x;
    __builtin_memcpy(&x, values, sizeof x);
    return widen(x);
}
static inline float unit_of(const element *values) { return widen_one(*values); }
static inline vector multiply_add(vector a, vector b, vector sums) { return fused(a, b, sums); }
#endif

static inline vector load_some_units(const element *values, int64_t size) {
    element filled[LANES * PER_UNIT] = {0};
    for (int64_t i = 0; i < size; i++) filled[i] = values[i];
    return load_units(filled);
}

/* Swap the blocks beside the diagonal: of size 1, then 2, 4, ... (Eklundh 1972). */
#define SWAP(x, size) \
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++) \
        if (!(i & size)) { \
            const vector lower = LOWER##size(x[i], x[i + size]), upper = UPPER##size(x[i], x[i + size]); \
            x[i] = lower, x[i + size] = upper; \
        }

/* x[i][j] becomes x[j][i]. */
static inline __attribute__((always_inline)) void transpose(vector x[LANES]) {
    SWAP(x, 1) SWAP(x, 2) SWAP(x, 4)
#if LANES == 16
    SWAP(x, 8)
#endif
}

/* Turn LANES columns of weight, of which there are `num_columns`, into one half of a panel (units, WIDTH). Those that
 * stand `ahead` behind them are prefetched. */
static void turn(const element *weight, int64_t ahead, int64_t stride, int64_t depth, int64_t num_columns,
                 vector *panel) {
    for (int64_t k = 0; k < depth; k += LANES * PER_UNIT) {
        vector x[LANES];
        const int64_t left = depth - k;
        if (num_columns == LANES && left >= LANES * PER_UNIT) {
#pragma GCC unroll 16
            for (int c = 0; c < LANES; c++) {
                x[c] = load_units(weight + c * stride + k);
                __builtin_prefetch(weight + c * stride + k + ahead, 0, 2);
            }
        } else {
            for (int c = 0; c < LANES; c++)
                x[c] = c < num_columns ? load_some_units(weight + c * stride + k, smaller(left, LANES * PER_UNIT))
                                       : (vector){0};
        }
        transpose(x);
        for (int u = 0; u < LANES; u++) panel[2 * (k / PER_UNIT + u)] = x[u];
    }
}

static inline __attribute__((always_inline)) void multiply_tile(const element *input, int64_t stride, int64_t depth,
                                                                const vector *panel, vector *sums, const int rows) {
    vector s[MAX_ROWS][2];
    for (int r = 0; r < rows; r++) s[r][0] = sums[2 * r], s[r][1] = sums[2 * r + 1];
    int64_t k = 0;
    for (; k + PER_UNIT <= depth; k += PER_UNIT, panel += 2)
        for (int r = 0; r < rows; r++) {
            const vector x = unit_of(input + r * stride + k) - (vector){0};
            s[r][0] = multiply_add(x, panel[0], s[r][0]);
            s[r][1] = multiply_add(x, panel[1], s[r][1]);
        }
    if (k < depth)
        for (int r = 0; r < rows; r++) {
            const vector x = load_some_units(input + r * stride + k, depth - k)[0] - (vector){0};
            s[r][0] = multiply_add(x, panel[0], s[r][0]);
            s[r][1] = multiply_add(x, panel[1], s[r][1]);
        }
    for (int r = 0; r < rows; r++) sums[2 * r] = s[r][0], sums[2 * r + 1] = s[r][1];
}

/* All rows of a block by a panel, in tiles as equal as they can be. */
static void multiply_panel(const element *input, int64_t stride, int64_t depth, const vector *panel, vector *sums,
                           int64_t num_rows) {
    const int64_t num_tiles = (num_rows + MAX_ROWS - 1) / MAX_ROWS;
    for (int64_t tile = 0; tile < num_tiles; tile++) {
        const int64_t row = tile * num_rows / num_tiles, rows = (tile + 1) * num_rows / num_tiles - row;
#define CASE(rows) \
    case rows: \
        multiply_tile(input + row * stride, stride, depth, panel, sums + 2 * row, rows); \
        break;
        switch (rows) {
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if MAX_ROWS > 6
            CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#endif
        }
    }
}

/* Sums (num_rows, WIDTH) of rows from `row` on and columns from `column` on, which those from `next` on will follow. */
static void multiply_block(const struct multiply_job *job, const element *weight, const element *bias, int64_t row,
                           int64_t num_rows, int64_t column, int64_t next, vector *sums) {
    vector panel[2 * DEEP];
    float first[WIDTH] = {0};
    const int64_t num_columns = smaller(job->num_columns - column, WIDTH), ahead = (next - column) * job->depth;
    if (bias)
        for (int64_t c = 0; c < num_columns; c++) first[c] = widen_one(bias[column + c]);
    for (int64_t r = 0; r < num_rows; r++) __builtin_memcpy(sums + 2 * r, first, sizeof first);
    const int64_t panel_depth = (num_rows > FEW_ROWS ? DEEP : SHALLOW) * PER_UNIT;
    for (int64_t k = 0; k < job->depth; k += panel_depth) {
        const int64_t depth = smaller(job->depth - k, panel_depth);
        const element *columns = weight + column * job->depth + k;
        turn(columns, ahead, job->depth, depth, smaller(num_columns, LANES), panel);
        turn(columns + LANES * job->depth, ahead, job->depth, depth, smaller(num_columns - LANES, LANES), panel + 1);
        multiply_panel(job->input + row * job->input_stride + k, job->input_stride, depth, panel, sums, num_rows);
    }
}

static inline float silu(float x) {
    const float e = exp_of(x < 0 ? x : -x);
    return x * (x < 0 ? e : 1.0f) / (1.0f + e);
}

static void gate(float *sums, const float *gates, int64_t size) {
#pragma omp simd
    for (int64_t i = 0; i < size; i++) sums[i] *= silu(gates[i]);
}

static void store(const struct multiply_job *job, int64_t place, const float *sums, int64_t num_columns) {
    if (!job->output) {
        __builtin_memcpy(job->wide_output + place, sums, num_columns * sizeof(float));
    } else if (job->addend) {
        for (int64_t c = 0; c < num_columns; c++)
            job->output[place + c] = narrow(widen_one(job->addend[place + c]) + sums[c]);
    } else {
        for (int64_t c = 0; c < num_columns; c++) job->output[place + c] = narrow(sums[c]);
    }
}

static void multiply_columns(const struct multiply_job *job, int64_t row, int64_t num_rows, int64_t column,
                             int64_t next) {
    union { vector vectors[2 * ROW_BLOCK]; float rows[ROW_BLOCK][WIDTH]; } sums, gates;
    multiply_block(job, job->weight, job->bias, row, num_rows, column, next, sums.vectors);
    if (job->gate) {
        multiply_block(job, job->gate, job->gate_bias, row, num_rows, column, next, gates.vectors);
        gate(sums.rows[0], gates.rows[0], num_rows * WIDTH);
    }
    for (int64_t r = 0; r < num_rows; r++)
        store(job, (row + r) * job->output_stride + column, sums.rows[r], smaller(job->num_columns - column, WIDTH));
}

static int64_t take(struct multiply_job *job) {
    return WIDTH * __atomic_fetch_add(&job->next_item, 1, __ATOMIC_RELAXED);
}

/* Run by all threads of a team at once: each takes the next columns until none are left. */
void multiply(struct multiply_job *job) {
    int64_t column = take(job);
    while (column < job->num_columns) {
        const int64_t next = take(job);
        for (int64_t row = 0; row < job->num_rows; row += ROW_BLOCK)
            multiply_columns(job, row, smaller(job->num_rows - row, ROW_BLOCK), column, next);
        column = next;
    }
}
