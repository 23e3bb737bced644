/* Attention of packed tokens over KV blocks: softmax(q k^T * scale) v for every token, without gathering or padding.
 *
 * The softmax is computed while passing over the keys, with a running maximum and sum (Milakov and Gimelshein 2018,
 * "Online normalizer calculation for softmax", algorithm 3), in tiles as in FlashAttention (Dao et al. 2022). What a
 * token gets depends only on its own query, keys and values, to the last bit: not on other tokens, on how its text is
 * cut into chunks, on the places or sizes of blocks, or on threads.
 *
 * Compiled once for each HEAD_DIM and type of the cache: float, or bfloat16 with -DBFLOAT16. Sums are float32. */

#include "attend.h"

#define NUM_VECTORS ((HEAD_DIM + LANES - 1) / LANES)
#define TILE 32

/* Heads whose sums stay in registers together: in 16 of AVX-512's 32. With fewer registers one head's fill them. */
#if HEAD_DIM <= 4 * LANES && LANES == 16
#define MAX_HEADS 4
#elif HEAD_DIM <= 8 * LANES && LANES == 16
#define MAX_HEADS 2
#else
#define MAX_HEADS 1
#endif

/* If units are pairs, keys are multiplied as the cache holds them, and queries rounded to their type, as torch does. */
#if PER_UNIT == 2
typedef element key_number;
static inline key_number as_key(float x) { return narrow(x); }
#else
typedef float key_number;
static inline key_number as_key(float x) { return x; }
#endif
#if defined(BFLOAT16) && PER_UNIT == 1
#define ARE_KEYS_WIDENED 1
#else
#define ARE_KEYS_WIDENED 0
#endif
#define UNIT_LANES (LANES * PER_UNIT)
#define NUM_KEY_VECTORS ((HEAD_DIM + UNIT_LANES - 1) / UNIT_LANES)

typedef float half_vector __attribute__((vector_size(2 * LANES)));
typedef float quad __attribute__((vector_size(16)));

struct softmax {
    float max, sum;
};

/* How many of a head's values stand in its i-th vector; the rest of the last one is zero. */
static inline int num_filled(int i) { return HEAD_DIM - i * LANES < LANES ? HEAD_DIM - i * LANES : LANES; }

static inline vector load(const float *values, int i) {
    vector x = {0};
    __builtin_memcpy(&x, values + i * LANES, num_filled(i) * sizeof(float));
    return x;
}

static inline vector load_value(const element *value, int i) {
    elements x = {0};
    __builtin_memcpy(&x, value + i * LANES, num_filled(i) * sizeof(element));
    return widen(x);
}

static inline vector load_key(const key_number *key, int i) {
    vector x = {0};
    __builtin_memcpy(&x, key + i * UNIT_LANES, smaller(HEAD_DIM - i * UNIT_LANES, UNIT_LANES) * sizeof(key_number));
    return x;
}

static inline void store(float *values, int i, vector x) {
    __builtin_memcpy(values + i * LANES, &x, num_filled(i) * sizeof(float));
}

static inline float sum_of(vector x) {
    const union { vector whole; half_vector halves[2]; } a = {x};
    const union { half_vector whole; quad quads[LANES / 8]; } b = {a.halves[0] + a.halves[1]};
    const quad c = LANES == 16 ? b.quads[0] + b.quads[LANES / 8 - 1] : b.quads[0];
    return (c[0] + c[2]) + (c[1] + c[3]);
}

/* The sum over each of LANES vectors, which are used up: neighbors of two vectors are added, then pairs of them, ... */
static inline vector sums_of(vector x[LANES]) {
#define ADD(size) \
    for (int i = 0; i < LANES; i += 2 * size) x[i] = LOWER##size(x[i], x[i + size]) + UPPER##size(x[i], x[i + size]);
    ADD(1) ADD(2) ADD(4)
#if LANES == 16
    ADD(8)
#endif
    return x[0];
}

/* What one query head gives each of `size` keys: weights that are not divided by the softmax's sum yet. Returns the
 * factor for all it has seen before. */
static inline float weigh(const key_number *query, const key_number *const *keys, int size, float scale,
                          struct softmax *softmax, float weights[TILE]) {
    vector q[NUM_KEY_VECTORS], sums = {0};
    for (int i = 0; i < NUM_KEY_VECTORS; i++) q[i] = load_key(query, i);
    for (int t = 0; t < TILE; t++) weights[t] = -INFINITY;
    for (int t = 0; t < size; t += LANES) {
        vector products[LANES];
        for (int lane = 0; lane < LANES; lane++) { /* the last key's score fills the lanes of missing keys */
            const key_number *key = keys[t + lane < size ? t + lane : size - 1];
            products[lane] = (vector){0};
            for (int i = 0; i < NUM_KEY_VECTORS; i++)
                products[lane] = multiply_add(q[i], load_key(key, i), products[lane]);
        }
        const union { vector whole; float lanes[LANES]; } scores = {scale * sums_of(products)};
        for (int lane = 0; lane < LANES; lane++) weights[t + lane] = t + lane < size ? scores.lanes[lane] : -INFINITY;
    }
    float max = softmax->max;
#pragma omp simd reduction(max : max)
    for (int t = 0; t < TILE; t++) max = weights[t] > max ? weights[t] : max;
    for (int t = 0; t < TILE; t++) weights[t] = exp_of(weights[t] - max);
    for (int t = 0; t < TILE; t += LANES) {
        vector w;
        __builtin_memcpy(&w, weights + t, sizeof w);
        sums += w;
    }
    const float faded = exp_of(softmax->max - max);
    *softmax = (struct softmax){max, faded * softmax->sum + sum_of(sums)};
    return faded;
}

/* Add weighted values to what some heads have seen. Together, or each sum would wait for the previous one. */
static inline __attribute__((always_inline)) void add_values(const float (*weights)[TILE], const float *faded,
                                                             const element *const *values, int size,
                                                             float (*outputs)[HEAD_DIM], const int heads) {
    vector seen[MAX_HEADS][NUM_VECTORS];
    for (int h = 0; h < heads; h++)
        for (int i = 0; i < NUM_VECTORS; i++) seen[h][i] = faded[h] * load(outputs[h], i);
    for (int t = 0; t < size; t++)
        for (int i = 0; i < NUM_VECTORS; i++) {
            const vector value = load_value(values[t], i);
            for (int h = 0; h < heads; h++) seen[h][i] += weights[h][t] * value;
        }
    for (int h = 0; h < heads; h++)
        for (int i = 0; i < NUM_VECTORS; i++) store(outputs[h], i, seen[h][i]);
}

/* Add `size` tokens to what some query heads of a token have seen, which is not divided by the softmax's sum yet. */
static inline void see(const key_number (*queries)[HEAD_DIM], const key_number *const *keys,
                       const element *const *values, int size, float scale, struct softmax *softmax,
                       float (*outputs)[HEAD_DIM], int64_t heads) {
    float weights[MAX_HEADS][TILE], faded[MAX_HEADS];
    for (int h = 0; h < heads; h++) faded[h] = weigh(queries[h], keys, size, scale, &softmax[h], weights[h]);
#define CASE(heads) \
    case heads: \
        add_values(weights, faded, values, size, outputs, heads); \
        break;
    switch (heads) {
        CASE(1)
#if MAX_HEADS > 1
        CASE(2)
#endif
#if MAX_HEADS > 2
        CASE(3) CASE(4)
#endif
    }
}

static inline void prefetch(const element *head) {
    for (unsigned offset = 0; offset < HEAD_DIM * sizeof(element); offset += 64)
        __builtin_prefetch((const char *)head + offset);
}

/* A tile's keys and values of one key-value head. */
struct tile {
    const key_number *keys[TILE];
    const element *values[TILE];
#if ARE_KEYS_WIDENED
    float wide_keys[TILE][HEAD_DIM]; /* made once for all queries */
#endif
};

/* Find a tile in the blocks. All of it is prefetched before any is read: hardware cannot predict the next block. */
static inline void find_tile(const struct attend_job *job, const int32_t *block_table, int64_t kv_head,
                             int64_t position, int size, struct tile *tile) {
    int64_t block = position / job->block_size, offset = position % job->block_size, places[TILE];
    for (int t = 0; t < size; t++) {
        const int64_t slot = block_table[block] * job->block_size + offset;
        places[t] = (slot * job->num_kv_heads + kv_head) * HEAD_DIM;
        prefetch(job->keys + places[t]);
        prefetch(job->values + places[t]);
        if (++offset == job->block_size) block++, offset = 0;
    }
    for (int t = 0; t < size; t++) {
#if ARE_KEYS_WIDENED
        for (int d = 0; d < HEAD_DIM; d++) tile->wide_keys[t][d] = widen_one(job->keys[places[t] + d]);
        tile->keys[t] = tile->wide_keys[t];
#else
        tile->keys[t] = job->keys + places[t];
#endif
        tile->values[t] = job->values + places[t];
    }
}

static inline int64_t first_visible(int64_t num_seen, int64_t window) {
    return num_seen > window ? num_seen - window : 0;
}

/* All query heads of a run that share a key-value head, tile by tile. Tiles begin at multiples of TILE, whatever the
 * run, so that a token meets the same sums in every run. */
static void attend_run(const struct attend_job *job, const struct run *run, int64_t kv_head) {
    const int64_t groups = job->num_heads / job->num_kv_heads, num_states = run->length * groups;
    const int64_t end = run->num_seen + run->length - 1;
    const int32_t *block_table = job->block_tables + run->sequence * job->table_width;
    struct softmax softmax[num_states];
    float seen[num_states][HEAD_DIM];
    key_number queries[num_states][HEAD_DIM];
    int64_t output_places[num_states]; /* of the heads */
    for (int64_t i = 0; i < num_states; i++) {
        const int64_t token = run->token + i / groups, head = kv_head * groups + i % groups;
        const float *query = job->query + (token * job->num_heads + head) * HEAD_DIM;
        output_places[i] = token * job->output_stride + head * HEAD_DIM;
        softmax[i] = (struct softmax){-INFINITY, 0};
        for (int d = 0; d < HEAD_DIM; d++) queries[i][d] = as_key(query[d]), seen[i][d] = 0;
    }
    for (int64_t start = first_visible(run->num_seen, job->window) / TILE * TILE; start < end; start += TILE) {
        struct tile tile;
        find_tile(job, block_table, kv_head, start, (int)smaller(end - start, TILE), &tile);
        for (int64_t token = 0; token < run->length; token++) {
            const int64_t num_seen = run->num_seen + token, visible = first_visible(num_seen, job->window);
            const int from = visible > start ? (int)(visible - start) : 0, to = (int)smaller(num_seen - start, TILE);
            if (from >= to) continue;
            for (int64_t head = 0; head < groups; head += MAX_HEADS) {
                const int64_t i = token * groups + head;
                see(queries + i, tile.keys + from, tile.values + from, to - from, job->scale, softmax + i, seen + i,
                    smaller(groups - head, MAX_HEADS));
            }
        }
    }
    for (int64_t i = 0; i < num_states; i++)
        for (int d = 0; d < HEAD_DIM; d++) job->output[output_places[i] + d] = narrow(seen[i][d] / softmax[i].sum);
}

/* Run by all threads of a team at once: each takes the next run and key-value head until none is left. */
void attend(struct attend_job *job) {
    const int64_t num_items = job->num_runs * job->num_kv_heads;
    int64_t item;
    while ((item = __atomic_fetch_add(&job->next_item, 1, __ATOMIC_RELAXED)) < num_items)
        attend_run(job, &job->runs[item / job->num_kv_heads], item % job->num_kv_heads);
}
