"""The operators spelled out in standard ONNX, so that an exported file runs without our kernels.

A function body stands for its node wherever no kernel or plugin of that name is registered. Those
of SPSE and SPAMP walk over the k columns of the neighbor table (``Scan``) with a running minimum or
maximum of [N, C], so [N, k, C] never exists: 30,000 points, k = 24 and C = 64 take about 90 MB.
Distances are summed as squares of differences, never expanded to a quadratic form, which would
cancel.

One body serves every variant of an operator, because a file holds one function per name: SPSE finds
its attribute and direction columns by slicing, and a column of zeros beside them keeps every loop
and product non-empty when there are none.

A body cannot check its indices. Out of [-N, N) the runtime's own ``Gather`` refuses; -N..-1 counts
from the end. Our kernels refuse both, naming the row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

DOMAIN = "dela"
DOMAIN_VERSION = 1
OPSET = 20

SPSE = """
<domain: "dela", opset_import: ["" : 20]>
SPSE <epsilon, directions> (points, neighbors, weight) => (out)
{
  zero = Constant <value_ints = [0]> ()
  one = Constant <value_ints = [1]> ()
  three = Constant <value_ints = [3]> ()
  nine = Constant <value_ints = [9]> ()
  twelve = Constant <value_ints = [12]> ()
  nothing = Constant <value_float = 0.0> ()
  highest = Constant <value_float = 3.0e38> ()
  epsilon = Constant <value_float: float = @epsilon> ()
  directions = Constant <value_int: int = @directions> ()
  count = Shape <start = 0, end = 1> (points)
  columns = Shape <start = 1, end = 2> (points)
  rows = Shape <start = 0, end = 1> (weight)
  channels = Shape <start = 1, end = 2> (weight)
  first_direction = Sub (columns, directions)
  first_direction_row = Sub (rows, directions)
  column_shape = Concat <axis = 0> (count, one)
  row_shape = Concat <axis = 0> (one, channels)
  zero_column = Expand (nothing, column_shape)
  zero_row = Expand (nothing, row_shape)

  facing = Slice (points, first_direction, columns, one)
  w = Slice (weight, first_direction_row, rows, zero)
  facing_columns = Concat <axis = 1> (facing, zero_column)
  w_rows = Concat <axis = 0> (w, zero_row)
  direction_term = MatMul (facing_columns, w_rows)
  attributes = Slice (points, three, first_direction, one)
  q = Slice (weight, twelve, first_direction_row, zero)
  attribute_columns = Concat <axis = 1> (attributes, zero_column)
  attribute_table = Transpose <perm = [1, 0]> (attribute_columns)
  q_rows = Concat <axis = 0> (q, zero_row)
  own_term = Scan <num_scan_inputs = 2, body = attribute (sum, value, reference) => (larger) {
    column = Unsqueeze (value, one)
    gap = Sub (column, reference)
    gap_squared = Mul (gap, gap)
    larger = Add (sum, gap_squared)
  }> (direction_term, attribute_table, q_rows)

  xyz = Slice (points, zero, three, one)
  p = Slice (weight, nine, twelve, zero)
  map = Slice (weight, zero, nine, zero)
  x0, y0, z0, x1, y1, z1, x2, y2, z2 = Split <axis = 0, num_outputs = 9> (map)
  map_x = Concat <axis = 0> (x0, x1, x2)
  map_y = Concat <axis = 0> (y0, y1, y2)
  map_z = Concat <axis = 0> (z0, z1, z2)
  center_x = Mul (map_x, p)
  center_y = Mul (map_y, p)
  center_z = Mul (map_z, p)
  offset_x = ReduceSum <keepdims = 0> (center_x, zero)
  offset_y = ReduceSum <keepdims = 0> (center_y, zero)
  offset_z = ReduceSum <keepdims = 0> (center_z, zero)
  minus_x = Neg (offset_x)
  minus_y = Neg (offset_y)
  minus_z = Neg (offset_z)

  out_shape = Shape (own_term)
  start = Expand (highest, out_shape)
  table = Transpose <perm = [1, 0]> (neighbors)
  smallest = Scan <num_scan_inputs = 1, body = column (best, index) => (better) {
    there = Gather <axis = 0> (xyz, index)
    step = Sub (there, xyz)
    x = Gemm (step, map_x, minus_x)
    y = Gemm (step, map_y, minus_y)
    z = Gemm (step, map_z, minus_z)
    xx = Mul (x, x)
    yy = Mul (y, y)
    zz = Mul (z, z)
    xxyy = Add (xx, yy)
    metric = Add (xxyy, zz)
    term = Gather <axis = 0> (own_term, index)
    distance = Add (metric, term)
    better = Min (best, distance)
  }> (start, table)
  raised = Add (smallest, epsilon)
  squared = Relu (raised)
  out = Sqrt (squared)
}
"""

# The four channels that share one center lie in four planes of [M, C / 4], so that the factor of
# a group multiplies whole planes.
SPAMP = """
<domain: "dela", opset_import: ["" : 20]>
SPAMP (features, points, neighbors, centers, weight) => (out)
{
  four = Constant <value_ints = [4]> ()
  tiny = Constant <value_float = 1.0e-8> ()
  lowest = Constant <value_float = -3.0e38> ()
  px, py, pz, s = Split <axis = 0, num_outputs = 4> (weight)
  falloff = Neg (s)

  wide = Cast <to = 1> (features)
  all_rows = Shape <start = 0, end = 1> (features)
  groups = Shape <start = 1, end = 2> (weight)
  grouped_shape = Concat <axis = 0> (all_rows, groups, four)
  grouped = Reshape <allowzero = 1> (wide, grouped_shape)
  planes = Transpose <perm = [2, 0, 1]> (grouped)
  own_planes = Gather <axis = 1> (planes, centers)
  own_points = Gather <axis = 0> (points, centers)

  own_shape = Shape (own_planes)
  start = Expand (lowest, own_shape)
  table = Transpose <perm = [1, 0]> (neighbors)
  largest = Scan <num_scan_inputs = 1, body = column (best, index) => (better) {
    there = Gather <axis = 0> (points, index)
    step = Sub (there, own_points)
    x, y, z = Split <axis = 1, num_outputs = 3> (step)
    dx = Sub (x, px)
    dy = Sub (y, py)
    dz = Sub (z, pz)
    xx = Mul (dx, dx)
    yy = Mul (dy, dy)
    zz = Mul (dz, dz)
    xxyy = Add (xx, yy)
    squares = Add (xxyy, zz)
    distance = Add (squares, tiny)
    exponent = Mul (distance, falloff)
    closeness = Exp (exponent)
    value = Gather <axis = 1> (planes, index)
    change = Sub (value, own_planes)
    scaled = Mul (change, closeness)
    better = Max (best, scaled)
  }> (start, table)

  joined = Transpose <perm = [1, 2, 0]> (largest)
  rows = Shape <start = 0, end = 1> (centers)
  channels = Shape <start = 1, end = 2> (features)
  out_shape = Concat <axis = 0> (rows, channels)
  result = Reshape <allowzero = 1> (joined, out_shape)
  out = CastLike (result, features)
}
"""

# Its SPAMP is a node of ours again, so a runtime whose kernels know SPAMP alone takes that.
SPAMP_RESIDUAL = """
<domain: "dela", opset_import: ["" : 20, "dela" : 1]>
SPAMPResidual (features, points, neighbors, centers, weight, base, scale) => (out)
{
  pooled = dela.SPAMP (features, points, neighbors, centers, weight)
  wide = Cast <to = 1> (pooled)
  scaled = Mul (wide, scale)
  wide_base = Cast <to = 1> (base)
  total = Add (wide_base, scaled)
  out = CastLike (total, features)
}
"""


def function_bodies() -> list[onnx.FunctionProto]:
    """The body of every operator, newly made."""
    import onnx.parser

    return [onnx.parser.parse_function(text) for text in (SPSE, SPAMP, SPAMP_RESIDUAL)]


def attach(model: onnx.ModelProto) -> None:
    """Puts every body and the import of our domain into ``model``, replacing earlier ones."""
    detach(model)
    model.functions.extend(function_bodies())
    if not any(entry.domain == DOMAIN for entry in model.opset_import):
        entry = model.opset_import.add()
        entry.domain, entry.version = DOMAIN, DOMAIN_VERSION


def detach(model: onnx.ModelProto) -> None:
    """Removes our bodies from ``model``: it then runs only where the operators are registered."""
    kept = [function for function in model.functions if function.domain != DOMAIN]
    del model.functions[:]
    model.functions.extend(kept)
