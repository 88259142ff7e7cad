// Stream capture and graphs. A graph keeps its nodes in the order they were captured, which respects
// their dependencies, and a launch runs them in that order.
#include "emulator.h"

#include <algorithm>
#include <cstring>

namespace emulated {

std::vector<Capture*> captures;

namespace {

struct Executable {
  std::vector<NodePointer> nodes;
  std::map<const Node*, size_t> places;  // of the nodes of the graph it was made from
  std::vector<std::shared_ptr<UserObject>> kept;
};

Handles<Graph> graphs;
Handles<Executable> executables;
thread_local CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
uint64_t next_capture = 1;


// A graph, or the one a capture is making.
Graph* find_graph(CUgraph handle) {
  for (Capture* capture : captures) {
    if (capture->graph == reinterpret_cast<Graph*>(handle)) return capture->graph;
  }
  return graphs.find(handle);
}

void end_capture(Capture* capture) {
  for (Stream* stream : capture->streams) {
    if (find_stream(reinterpret_cast<CUstream>(stream)) == nullptr) continue;
    stream->capture = nullptr;
    stream->tails.clear();
  }
  captures.erase(std::find(captures.begin(), captures.end(), capture));
}

void collect(const Node* node, std::set<const Node*>* reached) {
  if (!reached->insert(node).second) return;
  for (const Node* before : node->dependencies) collect(before, reached);
}

std::vector<NodePointer> copies(const std::vector<NodePointer>& nodes,
                                std::map<const Node*, size_t>* places) {
  std::vector<NodePointer> copied;
  std::map<const Node*, Node*> twins;
  for (const NodePointer& node : nodes) {
    if (places) (*places)[node.get()] = copied.size();
    auto twin = std::make_shared<Node>(*node);
    twins[node.get()] = twin.get();
    for (Node*& before : twin->dependencies) before = twins.at(before);
    copied.push_back(std::move(twin));
  }
  return copied;
}

CUresult add_node(CUgraphNode* handle, CUgraph graph_handle, const CUgraphNode* dependencies,
                  size_t count, NodePointer node) {
  Graph* graph = find_graph(graph_handle);
  if (!graph || (count > 0 && !dependencies)) return CUDA_ERROR_INVALID_VALUE;
  for (size_t i = 0; i < count; ++i) {
    Node* before = reinterpret_cast<Node*>(dependencies[i]);
    const bool known =
        std::any_of(graph->nodes.begin(), graph->nodes.end(),
                    [&](const NodePointer& one) { return one.get() == before; });
    if (!known) return CUDA_ERROR_INVALID_VALUE;
    node->dependencies.push_back(before);
  }
  *handle = reinterpret_cast<CUgraphNode>(node.get());
  graph->nodes.push_back(std::move(node));
  return CUDA_SUCCESS;
}

CUresult kernel_from(const CUDA_KERNEL_NODE_PARAMS& from, KernelCall* call) {
  const void* handle = from.func ? static_cast<const void*>(from.func) : from.kern;
  Function* function = valid_function(handle);
  if (!function) return CUDA_ERROR_INVALID_HANDLE;
  return make_call(function, {from.gridDimX, from.gridDimY, from.gridDimZ},
                   {from.blockDimX, from.blockDimY, from.blockDimZ}, from.sharedMemBytes,
                   from.kernelParams, from.extra, call);
}

}  // namespace

CUresult Node::run() const {
  switch (type) {
    case CU_GRAPH_NODE_TYPE_KERNEL:
      return run_kernel(kernel);
    case CU_GRAPH_NODE_TYPE_MEMCPY:
      return run_copy(copy);
    case CU_GRAPH_NODE_TYPE_MEMSET:
      return run_fill(fill);
    case CU_GRAPH_NODE_TYPE_HOST:
      host();
      return CUDA_SUCCESS;
    default:
      for (const NodePointer& child : children) {
        const CUresult result = child->run();
        if (result != CUDA_SUCCESS || sticky_error() != CUDA_SUCCESS) return result;
      }
      return CUDA_SUCCESS;
  }
}

NodePointer add_captured(Stream* stream, NodePointer node) {
  node->dependencies = stream->tails;
  stream->tails = {node.get()};
  stream->capture->graph->nodes.push_back(node);
  return node;
}

CUresult invalidate(Stream* stream, CUresult code, const char* what) {
  if (stream->capture) stream->capture->valid = false;
  return refuse(code, "not allowed while a stream captures: %s", what);
}

CUresult refused_by_capture(const char* what, bool allocation) {
  CUresult result = CUDA_SUCCESS;
  for (Capture* capture : captures) {
    const bool own = capture->thread == std::this_thread::get_id();
    const bool strict = capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED;
    const bool everywhere = capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL &&
                            thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
    if (strict && thread_mode != CU_STREAM_CAPTURE_MODE_RELAXED && (own || everywhere)) {
      capture->valid = false;
      result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    } else if (own && allocation && !settings.allow_capture_allocation) {
      fault(CUDA_SUCCESS, "%s while a stream captures", what);
    }
  }
  if (result != CUDA_SUCCESS) refuse(result, "not allowed while a stream captures: %s", what);
  return result;
}

CUresult refused_by_any_capture(const char* what) {
  if (captures.empty()) return CUDA_SUCCESS;
  for (Capture* capture : captures) capture->valid = false;
  return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "not allowed while a stream captures: %s",
                what);
}

}  // namespace emulated

using namespace emulated;

// ---- capture ----

CUDA_ENTRY cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
  ENTER_CONTEXT;
  Stream* stream = find_stream(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (stream == find_stream(nullptr)) {
    return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the legacy stream cannot capture");
  }
  if (stream->capture) return refuse(CUDA_ERROR_ILLEGAL_STATE, "the stream captures already");
  auto* capture =
      new Capture{new Graph, mode, std::this_thread::get_id(), stream, {stream}, true, next_capture++};
  captures.push_back(capture);
  stream->capture = capture;
  stream->tails.clear();
  ++counters.captures;
  return CUDA_SUCCESS;
}

CUDA_ENTRY cuStreamEndCapture(CUstream handle, CUgraph* graph_handle) {
  ENTER_CONTEXT;
  Stream* stream = find_stream(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  Capture* capture = stream->capture;
  *graph_handle = nullptr;
  if (!capture) return refuse(CUDA_ERROR_ILLEGAL_STATE, "the stream does not capture");
  if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED &&
      capture->thread != std::this_thread::get_id()) {
    return refuse(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "capture begun in another thread");
  }
  if (capture->origin != stream) {
    return invalidate(stream, CUDA_ERROR_STREAM_CAPTURE_UNMATCHED,
                      "the end of a capture on a stream that joined it");
  }
  std::set<const Node*> reached;
  for (const Node* tail : stream->tails) collect(tail, &reached);
  std::unique_ptr<Graph> graph(capture->graph);
  const bool valid = capture->valid;
  end_capture(capture);
  delete capture;
  if (!valid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  if (reached.size() != graph->nodes.size()) {
    return refuse(CUDA_ERROR_STREAM_CAPTURE_UNJOINED,
                  "%zu captured operations of other streams are not waited for by the capturing one",
                  graph->nodes.size() - reached.size());
  }
  *graph_handle = reinterpret_cast<CUgraph>(graphs.add(std::move(graph)));
  return CUDA_SUCCESS;
}

CUDA_ENTRY cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) {
  ENTER_CONTEXT;
  Stream* stream = find_stream(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  *status = !stream->capture         ? CU_STREAM_CAPTURE_STATUS_NONE
            : stream->capture->valid ? CU_STREAM_CAPTURE_STATUS_ACTIVE
                                     : CU_STREAM_CAPTURE_STATUS_INVALIDATED;
  return CUDA_SUCCESS;
}

CUDA_ENTRY cuStreamGetCaptureInfo_v3(CUstream handle, CUstreamCaptureStatus* status,
                                     cuuint64_t* id, CUgraph* graph,
                                     const CUgraphNode** dependencies,
                                     const CUgraphEdgeData** edges, size_t* count) {
  ENTER_CONTEXT;
  Stream* stream = find_stream(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  cuStreamIsCapturing(handle, status);
  Capture* capture = stream->capture;
  if (id) *id = capture ? capture->id : 0;
  if (graph) *graph = capture ? reinterpret_cast<CUgraph>(capture->graph) : nullptr;
  if (dependencies) {
    *dependencies = capture ? reinterpret_cast<const CUgraphNode*>(stream->tails.data()) : nullptr;
  }
  if (edges) *edges = nullptr;
  if (count) *count = capture ? stream->tails.size() : 0;
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuStreamGetCaptureInfo_v2(CUstream stream, CUstreamCaptureStatus* status, cuuint64_t* id,
                                     CUgraph* graph, const CUgraphNode** dependencies,
                                     size_t* count) {
  return cuStreamGetCaptureInfo_v3(stream, status, id, graph, dependencies, nullptr, count);
}

CUDA_ENTRY cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  ENTER;
  std::swap(*mode, thread_mode);
  return CUDA_SUCCESS;
}

// ---- graphs ----

CUDA_ENTRY cuGraphCreate(CUgraph* handle, unsigned) {
  ENTER_CONTEXT;
  *handle = reinterpret_cast<CUgraph>(graphs.add(std::make_unique<Graph>()));
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuGraphDestroy(CUgraph handle) {
  Call counted;
  Graph* graph = graphs.find(handle);
  return graph && graphs.erase(graph) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUDA_ENTRY cuGraphClone(CUgraph* clone, CUgraph handle) {
  ENTER_CONTEXT;
  Graph* graph = graphs.find(handle);
  if (!graph) return CUDA_ERROR_INVALID_VALUE;
  auto copied = std::make_unique<Graph>();
  copied->nodes = copies(graph->nodes, nullptr);
  copied->kept = graph->kept;
  *clone = reinterpret_cast<CUgraph>(graphs.add(std::move(copied)));
  return CUDA_SUCCESS;
}

CUDA_ENTRY cuGraphGetNodes(CUgraph handle, CUgraphNode* nodes, size_t* count) {
  ENTER_CONTEXT;
  Graph* graph = graphs.find(handle);
  if (!graph) return CUDA_ERROR_INVALID_VALUE;
  if (nodes) {
    for (size_t i = 0; i < *count; ++i) {
      nodes[i] = i < graph->nodes.size() ? reinterpret_cast<CUgraphNode>(graph->nodes[i].get())
                                         : nullptr;
    }
  }
  if (!nodes || *count > graph->nodes.size()) *count = graph->nodes.size();
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuGraphNodeGetType(CUgraphNode node, CUgraphNodeType* type) {
  ENTER_CONTEXT;
  *type = reinterpret_cast<Node*>(node)->type;
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuGraphNodeGetDependencies(CUgraphNode handle, CUgraphNode* dependencies, size_t* count) {
  ENTER_CONTEXT;
  const Node* node = reinterpret_cast<Node*>(handle);
  if (dependencies) {
    for (size_t i = 0; i < std::min(*count, node->dependencies.size()); ++i) {
      dependencies[i] = reinterpret_cast<CUgraphNode>(node->dependencies[i]);
    }
  }
  *count = node->dependencies.size();
  return CUDA_SUCCESS;
}

CUDA_ENTRY cuGraphAddKernelNode_v2(CUgraphNode* handle, CUgraph graph,
                                   const CUgraphNode* dependencies, size_t count,
                                   const CUDA_KERNEL_NODE_PARAMS* parameters) {
  ENTER_CONTEXT;
  auto node = std::make_shared<Node>();
  node->type = CU_GRAPH_NODE_TYPE_KERNEL;
  if (const CUresult wrong = kernel_from(*parameters, &node->kernel)) return wrong;
  return add_node(handle, graph, dependencies, count, std::move(node));
}
CUDA_ENTRY cuGraphAddMemsetNode(CUgraphNode* handle, CUgraph graph, const CUgraphNode* dependencies,
                                size_t count, const CUDA_MEMSET_NODE_PARAMS* p, CUcontext) {
  ENTER_CONTEXT;
  auto node = std::make_shared<Node>();
  node->type = CU_GRAPH_NODE_TYPE_MEMSET;
  const size_t pitch = p->height > 1 ? p->pitch : p->width * p->elementSize;
  node->fill = {p->dst, p->value, p->elementSize, p->width, p->height, pitch};
  if (const CUresult wrong = check_fill(node->fill)) return wrong;
  return add_node(handle, graph, dependencies, count, std::move(node));
}
CUDA_ENTRY cuGraphAddEmptyNode(CUgraphNode* handle, CUgraph graph, const CUgraphNode* dependencies,
                               size_t count) {
  ENTER_CONTEXT;
  return add_node(handle, graph, dependencies, count, std::make_shared<Node>());
}

CUDA_ENTRY cuGraphInstantiateWithFlags(CUgraphExec* handle, CUgraph graph_handle,
                                       unsigned long long) {
  ENTER_CONTEXT;
  Graph* graph = graphs.find(graph_handle);
  if (!graph) return CUDA_ERROR_INVALID_VALUE;
  auto executable = std::make_unique<Executable>();
  executable->nodes = copies(graph->nodes, &executable->places);
  executable->kept = graph->kept;
  *handle = reinterpret_cast<CUgraphExec>(executables.add(std::move(executable)));
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuGraphInstantiateWithParams(CUgraphExec* handle, CUgraph graph,
                                        CUDA_GRAPH_INSTANTIATE_PARAMS* parameters) {
  const CUresult result = cuGraphInstantiateWithFlags(handle, graph, 0);
  parameters->result_out =
      result == CUDA_SUCCESS ? CUDA_GRAPH_INSTANTIATE_SUCCESS : CUDA_GRAPH_INSTANTIATE_ERROR;
  return result;
}
CUDA_ENTRY cuGraphExecDestroy(CUgraphExec handle) {
  Call counted;
  Executable* executable = executables.find(handle);
  return executable && executables.erase(executable) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUDA_ENTRY cuGraphUpload(CUgraphExec handle, CUstream) {
  ENTER_CONTEXT;
  return executables.find(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUDA_ENTRY cuGraphLaunch(CUgraphExec handle, CUstream stream_handle) {
  ENTER_CONTEXT;
  Executable* executable = executables.find(handle);
  Stream* stream = find_stream(stream_handle);
  if (!executable) return CUDA_ERROR_INVALID_VALUE;
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  auto node = std::make_shared<Node>();
  node->type = CU_GRAPH_NODE_TYPE_GRAPH;
  node->children = copies(executable->nodes, nullptr);  // a later update leaves this launch alone
  ++counters.graph_launches;
  return submit(stream, std::move(node));
}

CUDA_ENTRY cuGraphExecUpdate_v2(CUgraphExec handle, CUgraph graph_handle,
                                CUgraphExecUpdateResultInfo* info) {
  ENTER_CONTEXT;
  Executable* executable = executables.find(handle);
  Graph* graph = graphs.find(graph_handle);
  if (!executable || !graph) return CUDA_ERROR_INVALID_VALUE;
  std::map<const Node*, size_t> places;
  auto nodes = copies(graph->nodes, &places);
  std::memset(info, 0, sizeof *info);
  const auto place_of = [](const std::vector<NodePointer>& all, const Node* node) {
    return std::find_if(all.begin(), all.end(),
                        [&](const NodePointer& one) { return one.get() == node; }) -
           all.begin();
  };
  info->result = CU_GRAPH_EXEC_UPDATE_SUCCESS;
  if (nodes.size() != executable->nodes.size()) {
    info->result = CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
  }
  for (size_t i = 0; info->result == CU_GRAPH_EXEC_UPDATE_SUCCESS && i < nodes.size(); ++i) {
    const auto &now = nodes[i]->dependencies, &before = executable->nodes[i]->dependencies;
    bool same = now.size() == before.size();
    for (size_t j = 0; same && j < now.size(); ++j) {
      same = place_of(nodes, now[j]) == place_of(executable->nodes, before[j]);
    }
    if (nodes[i]->type != executable->nodes[i]->type) {
      info->result = CU_GRAPH_EXEC_UPDATE_ERROR_NODE_TYPE_CHANGED;
    } else if (!same) {
      info->result = CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
    }
    if (info->result != CU_GRAPH_EXEC_UPDATE_SUCCESS) {
      info->errorNode = reinterpret_cast<CUgraphNode>(graph->nodes[i].get());
    }
  }
  if (info->result != CU_GRAPH_EXEC_UPDATE_SUCCESS) return CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
  executable->nodes = std::move(nodes);
  executable->kept = graph->kept;
  return CUDA_SUCCESS;
}

CUDA_ENTRY cuGraphExecKernelNodeSetParams_v2(CUgraphExec handle, CUgraphNode node,
                                             const CUDA_KERNEL_NODE_PARAMS* parameters) {
  ENTER_CONTEXT;
  Executable* executable = executables.find(handle);
  if (!executable || !parameters) return CUDA_ERROR_INVALID_VALUE;
  const auto place = executable->places.find(reinterpret_cast<const Node*>(node));
  if (place == executable->places.end()) return CUDA_ERROR_INVALID_VALUE;
  Node& target = *executable->nodes[place->second];
  if (target.type != CU_GRAPH_NODE_TYPE_KERNEL) return CUDA_ERROR_INVALID_VALUE;
  KernelCall call;
  if (const CUresult wrong = kernel_from(*parameters, &call)) return wrong;
  target.kernel = std::move(call);
  return CUDA_SUCCESS;
}

// ---- user objects ----

namespace {

struct UserHandle {
  std::vector<std::shared_ptr<UserObject>> references;  // of the program itself
  std::weak_ptr<UserObject> object;
};
Handles<UserHandle> user_handles;

// Takes `count` references away; they go when the result does.
bool take(std::vector<std::shared_ptr<UserObject>>* from, const std::shared_ptr<UserObject>& object,
          unsigned count, std::vector<std::shared_ptr<UserObject>>* taken) {
  for (auto at = from->begin(); at != from->end() && count > 0;) {
    if (*at != object) {
      ++at;
      continue;
    }
    taken->push_back(std::move(*at));
    at = from->erase(at);
    --count;
  }
  return count == 0;
}

}  // namespace

CUDA_ENTRY cuUserObjectCreate(CUuserObject* handle, void* object, CUhostFn destroy,
                              unsigned references, unsigned) {
  ENTER;
  if (!destroy || references == 0) return CUDA_ERROR_INVALID_VALUE;
  auto made = std::make_unique<UserHandle>();
  const std::shared_ptr<UserObject> shared(new UserObject{object, destroy});
  made->references.assign(references, shared);
  made->object = shared;
  *handle = reinterpret_cast<CUuserObject>(user_handles.add(std::move(made)));
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuUserObjectRetain(CUuserObject handle, unsigned count) {
  ENTER;
  UserHandle* user = user_handles.find(handle);
  const auto object = user ? user->object.lock() : nullptr;
  if (!object) return CUDA_ERROR_INVALID_VALUE;
  user->references.insert(user->references.end(), count, object);
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuUserObjectRelease(CUuserObject handle, unsigned count) {
  Call counted;
  UserHandle* user = user_handles.find(handle);
  std::vector<std::shared_ptr<UserObject>> taken;
  const auto object = user ? user->object.lock() : nullptr;
  return object && take(&user->references, object, count, &taken) ? CUDA_SUCCESS
                                                                  : CUDA_ERROR_INVALID_VALUE;
}
CUDA_ENTRY cuGraphRetainUserObject(CUgraph graph_handle, CUuserObject handle, unsigned count,
                                   unsigned flags) {
  ENTER;
  Graph* graph = find_graph(graph_handle);
  UserHandle* user = user_handles.find(handle);
  const auto object = user ? user->object.lock() : nullptr;
  if (!graph || !object) return CUDA_ERROR_INVALID_VALUE;
  graph->kept.insert(graph->kept.end(), count, object);
  std::vector<std::shared_ptr<UserObject>> moved;
  const bool move = (flags & CU_GRAPH_USER_OBJECT_MOVE) != 0;
  return !move || take(&user->references, object, count, &moved) ? CUDA_SUCCESS
                                                                 : CUDA_ERROR_INVALID_VALUE;
}
CUDA_ENTRY cuGraphReleaseUserObject(CUgraph graph_handle, CUuserObject handle, unsigned count) {
  ENTER;
  Graph* graph = find_graph(graph_handle);
  UserHandle* user = user_handles.find(handle);
  std::vector<std::shared_ptr<UserObject>> taken;
  const auto object = user ? user->object.lock() : nullptr;
  return graph && object && take(&graph->kept, object, count, &taken) ? CUDA_SUCCESS
                                                                      : CUDA_ERROR_INVALID_VALUE;
}
