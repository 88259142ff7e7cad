// Streams and events. Work is queued and, unless a test defers it, run at once; deferred work runs
// only when somebody waits for it, so a missing wait leaves its results unmade.
#include "emulator.h"

#include <algorithm>
#include <chrono>

namespace emulated {
namespace {

struct Event {
  Stream* stream = nullptr;  // of the latest record; null: never recorded, or captured
  uint64_t position = 0;     // pieces of that stream's work up to and with the record
  uint64_t record = 0;       // counts records
  uint64_t reached = 0;      // the latest record that ran
  double milliseconds = 0;
  unsigned flags = 0;
  Capture* capture = nullptr;
  uint64_t capture_id = 0;
  std::vector<Node*> tails;
};

Handles<Stream> streams;
Handles<Event> events;

Stream& legacy_stream() {
  static Stream stream;
  return stream;
}
Stream& per_thread_stream() {
  static thread_local Stream* stream = streams.add(std::make_unique<Stream>());
  return *stream;
}

double now() {
  const auto time = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(time).count();
}

// Work of `stream` from now on waits for what `other` was given so far.
void wait_for(Stream* stream, Stream* other) {
  if (stream == other || other->completed == other->issued) return;
  stream->queue.push_back({[other, position = other->issued] {
    other->run_until(position);
    return CUDA_SUCCESS;
  }});
  ++stream->issued;
}

bool pending(const Event& event) {
  return event.stream != nullptr && event.reached < event.record;
}

Event* find_event(CUevent handle) { return events.find(handle); }

CUresult captured_event(const Event& event) {
  return event.capture ? refuse(CUDA_ERROR_CAPTURED_EVENT, "a wait for an event of a capture")
                       : CUDA_SUCCESS;
}

}  // namespace

void Stream::run_until(uint64_t position) {
  DeviceMemoryOpen open;  // once for all of it
  while (completed < position && !queue.empty()) {
    const Work work = std::move(queue.front());
    queue.pop_front();
    if (sticky_error() == CUDA_SUCCESS) {
      const CUresult result = work.run();
      if (result != CUDA_SUCCESS && sticky_error() == CUDA_SUCCESS) {
        fault(result, "queued work failed with CUDA error %d", static_cast<int>(result));
      }
    }
    ++completed;
  }
}

Stream* find_stream(CUstream handle) {
  const uintptr_t number = reinterpret_cast<uintptr_t>(handle);
  if (number <= 1) return &legacy_stream();
  if (number == 2) return &per_thread_stream();
  return streams.find(handle);
}

void finish_all() {
  streams.each([](Stream* stream) { stream->finish(); });
  legacy_stream().finish();
}

void forget_work() {
  const auto forget = [](Stream* stream) {
    stream->queue.clear();
    stream->completed = stream->issued;
    stream->capture = nullptr;
    stream->tails.clear();
  };
  streams.each(forget);
  forget(&legacy_stream());
  events.each([](Event* event) { event->reached = event->record, event->capture = nullptr; });
  for (Capture* capture : captures) {
    delete capture->graph;
    delete capture;
  }
  captures.clear();
}

void queue_work(Stream* stream, std::function<CUresult()> work) {
  if (stream == &legacy_stream()) {
    streams.each([&](Stream* other) {
      if (other->blocking()) wait_for(stream, other);
    });
  } else if (stream->blocking()) {
    wait_for(stream, &legacy_stream());
  }
  stream->queue.push_back({std::move(work)});
  ++stream->issued;
  if (!settings.defer) stream->finish();
}

CUresult submit(Stream* stream, NodePointer node) {
  if (stream->capture) {
    if (!stream->capture->valid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    add_captured(stream, std::move(node));
    return CUDA_SUCCESS;
  }
  if (stream == &legacy_stream()) {
    CUresult result = CUDA_SUCCESS;
    streams.each([&](Stream* other) {
      if (other->capture && other->blocking()) {
        result = invalidate(other, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
                            "use of the legacy default stream, which would wait for the capture");
      }
    });
    if (result != CUDA_SUCCESS) return result;
  }
  queue_work(stream, [node = std::move(node)] { return node->run(); });
  return CUDA_SUCCESS;
}

}  // namespace emulated

using namespace emulated;

#define FIND_STREAM(stream, handle)       \
  Stream* stream = find_stream(handle);   \
  if (!stream) return CUDA_ERROR_INVALID_HANDLE
#define FIND_EVENT(event, handle)       \
  Event* event = find_event(handle);    \
  if (!event) return CUDA_ERROR_INVALID_HANDLE

CUDA_ENTRY cuCtxSynchronize() {
  ENTER_CONTEXT;
  if (const CUresult refused = refused_by_any_capture("cuCtxSynchronize")) return refused;
  ++counters.synchronisations;
  finish_all();
  return sticky_error();
}
CUDA_ENTRY cuCtxSynchronize_v2(CUcontext) { return cuCtxSynchronize(); }

// ---- streams ----

CUDA_ENTRY cuStreamCreateWithPriority(CUstream* handle, unsigned flags, int priority) {
  ENTER_CONTEXT;
  if (flags & ~static_cast<unsigned>(CU_STREAM_NON_BLOCKING)) return CUDA_ERROR_INVALID_VALUE;
  auto stream = std::make_unique<Stream>();
  stream->flags = flags;
  stream->priority = std::clamp(priority, -5, 0);
  stream->context = current_context();
  *handle = reinterpret_cast<CUstream>(streams.add(std::move(stream)));
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuStreamCreate(CUstream* handle, unsigned flags) {
  return cuStreamCreateWithPriority(handle, flags, 0);
}

CUDA_ENTRY cuStreamDestroy_v2(CUstream handle) {
  Call counted;
  Stream* stream = streams.find(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->capture) invalidate(stream, CUDA_SUCCESS, "the end of a capturing stream");
  // The real call returns at once and the work goes on; nobody can wait for it by this handle.
  stream->finish();
  events.each([&](Event* event) {
    if (event->stream == stream) event->stream = nullptr;
  });
  streams.erase(stream);
  return CUDA_SUCCESS;
}

CUDA_ENTRY cuStreamSynchronize(CUstream handle) {
  ENTER_CONTEXT;
  FIND_STREAM(stream, handle);
  if (stream->capture) {
    return invalidate(stream, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                      "cuStreamSynchronize of a capturing stream");
  }
  if (const CUresult refused = refused_by_capture("cuStreamSynchronize", false)) return refused;
  ++counters.synchronisations;
  if (stream == find_stream(nullptr)) {
    streams.each([](Stream* other) {
      if (other->blocking()) other->finish();
    });
  }
  stream->finish();
  return sticky_error();
}

CUDA_ENTRY cuStreamQuery(CUstream handle) {
  ENTER_CONTEXT;
  FIND_STREAM(stream, handle);
  if (stream->capture) {
    return invalidate(stream, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                      "cuStreamQuery of a capturing stream");
  }
  // Deferred work makes progress, one piece a query, so that polling comes to an end.
  if (stream->completed < stream->issued) stream->run_until(stream->completed + 1);
  if (const CUresult late = sticky_error()) return late;
  return stream->completed == stream->issued ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUDA_ENTRY cuStreamGetCtx(CUstream handle, CUcontext* context) {
  ENTER_CONTEXT;
  FIND_STREAM(stream, handle);
  *context = stream->context ? stream->context : current_context();
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuStreamGetFlags(CUstream handle, unsigned* flags) {
  ENTER_CONTEXT;
  FIND_STREAM(stream, handle);
  *flags = stream->flags;
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuStreamGetPriority(CUstream handle, int* priority) {
  ENTER_CONTEXT;
  FIND_STREAM(stream, handle);
  *priority = stream->priority;
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuStreamGetDevice(CUstream handle, CUdevice* device) {
  ENTER_CONTEXT;
  FIND_STREAM(stream, handle);
  *device = 0;
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuStreamGetId(CUstream handle, unsigned long long* id) {
  ENTER_CONTEXT;
  FIND_STREAM(stream, handle);
  *id = reinterpret_cast<unsigned long long>(stream);
  return CUDA_SUCCESS;
}

CUDA_ENTRY cuLaunchHostFunc(CUstream handle, CUhostFn function, void* data) {
  ENTER_CONTEXT;
  FIND_STREAM(stream, handle);
  if (!function) return CUDA_ERROR_INVALID_VALUE;
  auto node = std::make_shared<Node>();
  node->type = CU_GRAPH_NODE_TYPE_HOST;
  node->host = [=] { function(data); };
  return submit(stream, std::move(node));
}
CUDA_ENTRY cuStreamAddCallback(CUstream handle, CUstreamCallback function, void* data, unsigned) {
  ENTER_CONTEXT;
  FIND_STREAM(stream, handle);
  if (!function) return CUDA_ERROR_INVALID_VALUE;
  if (stream->capture) {
    return invalidate(stream, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "cuStreamAddCallback");
  }
  queue_work(stream, [=] {
    function(handle, CUDA_SUCCESS, data);
    return CUDA_SUCCESS;
  });
  return CUDA_SUCCESS;
}

// ---- events ----

CUDA_ENTRY cuEventCreate(CUevent* handle, unsigned flags) {
  ENTER_CONTEXT;
  auto event = std::make_unique<Event>();
  event->flags = flags;
  *handle = reinterpret_cast<CUevent>(events.add(std::move(event)));
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuEventDestroy_v2(CUevent handle) {
  Call counted;
  Event* event = find_event(handle);
  if (!event) return CUDA_ERROR_INVALID_HANDLE;
  if (pending(*event)) event->stream->run_until(event->position);
  events.erase(event);
  return CUDA_SUCCESS;
}

CUDA_ENTRY cuEventRecord(CUevent handle, CUstream stream_handle) {
  ENTER_CONTEXT;
  FIND_EVENT(event, handle);
  FIND_STREAM(stream, stream_handle);
  if (stream->capture) {
    if (!stream->capture->valid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    event->capture = stream->capture;
    event->capture_id = stream->capture->id;
    event->tails = stream->tails;
    event->stream = nullptr;
    return CUDA_SUCCESS;
  }
  event->capture = nullptr;
  const uint64_t record = ++event->record;
  event->stream = stream;
  queue_work(stream, [handle, record] {
    if (Event* one = find_event(handle)) {
      one->reached = std::max(one->reached, record);
      one->milliseconds = now();
    }
    return CUDA_SUCCESS;
  });
  event->position = stream->issued;
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned) {
  return cuEventRecord(event, stream);
}

CUDA_ENTRY cuStreamWaitEvent(CUstream stream_handle, CUevent handle, unsigned) {
  ENTER_CONTEXT;
  FIND_STREAM(stream, stream_handle);
  FIND_EVENT(event, handle);
  if (event->capture) {
    const bool alive = std::any_of(captures.begin(), captures.end(), [&](const Capture* capture) {
      return capture == event->capture && capture->id == event->capture_id;
    });
    if (!alive) return refuse(CUDA_ERROR_INVALID_VALUE, "a wait for an event of an ended capture");
    if (stream->capture && stream->capture != event->capture) {
      return invalidate(stream, CUDA_ERROR_STREAM_CAPTURE_MERGE, "a wait for another capture");
    }
    if (!stream->capture) {
      stream->capture = event->capture;
      stream->tails.clear();
      event->capture->streams.insert(stream);
    }
    for (Node* tail : event->tails) {
      if (std::find(stream->tails.begin(), stream->tails.end(), tail) == stream->tails.end()) {
        stream->tails.push_back(tail);
      }
    }
    return CUDA_SUCCESS;
  }
  if (!event->stream) return CUDA_SUCCESS;  // never recorded
  if (stream->capture) {
    return invalidate(stream, CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
                      "a wait, in a capture, for work outside it");
  }
  Stream* other = event->stream;
  if (other == stream || !pending(*event)) return CUDA_SUCCESS;
  stream->queue.push_back({[other, position = event->position] {
    other->run_until(position);
    return CUDA_SUCCESS;
  }});
  ++stream->issued;
  return CUDA_SUCCESS;
}

CUDA_ENTRY cuEventSynchronize(CUevent handle) {
  ENTER_CONTEXT;
  FIND_EVENT(event, handle);
  if (const CUresult refused = captured_event(*event)) return refused;
  if (const CUresult refused = refused_by_capture("cuEventSynchronize", false)) return refused;
  ++counters.synchronisations;
  if (pending(*event)) event->stream->run_until(event->position);
  return sticky_error();
}
CUDA_ENTRY cuEventQuery(CUevent handle) {
  ENTER_CONTEXT;
  FIND_EVENT(event, handle);
  if (const CUresult refused = captured_event(*event)) return refused;
  if (pending(*event)) event->stream->run_until(event->stream->completed + 1);
  if (const CUresult late = sticky_error()) return late;
  return pending(*event) ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}
CUDA_ENTRY cuEventElapsedTime_v2(float* milliseconds, CUevent first, CUevent second) {
  ENTER_CONTEXT;
  FIND_EVENT(from, first);
  FIND_EVENT(to, second);
  const bool timed = !((from->flags | to->flags) & CU_EVENT_DISABLE_TIMING);
  if (!timed || from->record == 0 || to->record == 0) return CUDA_ERROR_INVALID_HANDLE;
  if (pending(*from) || pending(*to)) return CUDA_ERROR_NOT_READY;
  *milliseconds = static_cast<float>(to->milliseconds - from->milliseconds);
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuEventElapsedTime(float* milliseconds, CUevent first, CUevent second) {
  return cuEventElapsedTime_v2(milliseconds, first, second);
}
