/* dela from C and C++: labels for whole scans, without Python.
 *
 * A network that `dela export` wrote is loaded once and then labels scans: attributes, voxels,
 * neighbors, tiles, votes and the way back to every point are those of `dela predict`, and so are
 * the labels. The network runs in ONNX Runtime, whose shared library is looked for when the first
 * model is loaded.
 *
 * Every function that can fail returns a status; the words are in dela_last_error(). No C++
 * exception leaves the library. A model may be used by several threads at once; freeing it while
 * another thread uses it is an error of the caller.
 *
 * Options are structures whose first member is their size, so that later versions can add
 * members at the end: `dela_label_options options = {sizeof options};`, and what is left 0 or NULL
 * has the default that is written beside it.
 */
#ifndef DELA_H
#define DELA_H

#include <stddef.h>
#include <stdint.h>

#define DELA_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

typedef enum dela_status {
  DELA_OK = 0,
  DELA_OUT_OF_MEMORY = 1,
  DELA_BAD_ARGUMENT = 2, /* NULL, a negative count, an unknown type: a mistake in the call */
  DELA_BAD_INPUT = 3,    /* the scan: no points, NaN, a missing column */
  DELA_BAD_MODEL = 4,    /* the file: missing, damaged, of another kind or a newer version */
  DELA_NO_RUNTIME = 5,   /* ONNX Runtime's library is missing or too old */
  DELA_FAILED = 6        /* the network's run failed */
} dela_status;

/* Types of coordinates and columns. */
typedef enum dela_type {
  DELA_FLOAT64 = 0,
  DELA_FLOAT32 = 1,
  DELA_INT8 = 2,
  DELA_UINT8 = 3,
  DELA_INT16 = 4,
  DELA_UINT16 = 5,
  DELA_INT32 = 6,
  DELA_UINT32 = 7,
  DELA_INT64 = 8,
  DELA_UINT64 = 9
} dela_type;

/* A loaded network. */
typedef struct dela_model dela_model;

typedef struct dela_load_options {
  size_t size;             /* sizeof(dela_load_options) */
  const char* onnxruntime; /* ONNX Runtime's shared library; NULL: $DELA_ONNXRUNTIME, then
                              libonnxruntime.so on the library path. One for each process: what
                              the first model used, all use. */
  int32_t threads;         /* that compute; 0: $OMP_NUM_THREADS, then the processors given */
} dela_load_options;

/* One value for each point, beside the coordinates. */
typedef struct dela_column {
  const char* name;  /* as the network knows it: intensity, red, normal_x ... */
  const void* data;  /* of the first point */
  int32_t type;      /* a dela_type */
  int64_t stride;    /* bytes from one point's value to the next one's; 0: they are adjacent */
} dela_column;

/* A scan. Columns that the network does not ask for are left alone. */
typedef struct dela_cloud {
  const void* points; /* x, y, z of the first point, meters, any origin; z up */
  int32_t type;       /* DELA_FLOAT64 or DELA_FLOAT32 */
  int64_t stride;     /* bytes from one point to the next; 0: they are adjacent */
  int64_t count;
  const dela_column* columns;
  int32_t column_count;
} dela_cloud;

typedef struct dela_label_options {
  size_t size;          /* sizeof(dela_label_options) */
  int64_t max_points;   /* voxels in one run of the network; larger scenes are cut into tiles that
                           overlap. 0: 200,000 */
  int32_t votes;        /* how often the network looks at the scan, each time turned and with
                           other points of the voxels. 0: once */
  int32_t drop_invalid; /* not 0: points with NaN or infinite coordinates are left out, labeled -1
                           with confidence 0; 0: they are an error */
} dela_label_options;

/* Loads a file that `dela export` wrote. `options` may be NULL. On success `*model` is to be freed
 * by dela_model_free, otherwise it is NULL. */
DELA_API dela_status dela_model_load(const char* path, const dela_load_options* options,
                                     dela_model** model);

/* Frees a model; NULL is left alone. */
DELA_API void dela_model_free(dela_model* model);

/* Labels a scan. `labels` and `confidences` hold `cloud->count` values each, in the scan's order: the
 * label code of each point's class, and the probability of that class; `confidences` may be NULL.
 * `options` may be NULL. A network that names whole objects gives all points one label. When it fails,
 * nothing is written. */
DELA_API dela_status dela_model_label(const dela_model* model, const dela_cloud* cloud,
                                      const dela_label_options* options, int32_t* labels,
                                      float* confidences);

/* The network's classes. Out of range: NULL, and -1 for the code. Names live as long as the model. */
DELA_API int32_t dela_model_class_count(const dela_model* model);
DELA_API const char* dela_model_class_name(const dela_model* model, int32_t index);
DELA_API int32_t dela_model_class_code(const dela_model* model, int32_t index);

/* Columns that a scan must have beside its coordinates. Out of range: NULL. */
DELA_API int32_t dela_model_column_count(const dela_model* model);
DELA_API const char* dela_model_column_name(const dela_model* model, int32_t index);

/* What the last call of this thread that failed says: one or two lines, "" before the first. Valid until
 * the thread's next failure. */
DELA_API const char* dela_last_error(void);

#ifdef __cplusplus
}
#endif

#endif /* DELA_H */
