# find_package(dela): the target dela::dela, the C library of the installed Python package or checkout
# that this file belongs to. `python -c "import dela; print(dela.get_cmake_dir())"` tells its folder.
get_filename_component(_dela_capi "${CMAKE_CURRENT_LIST_DIR}/.." REALPATH)
get_filename_component(_dela_library "${_dela_capi}/../libdela${CMAKE_SHARED_LIBRARY_SUFFIX}" ABSOLUTE)

if(NOT EXISTS "${_dela_library}")
  set(dela_FOUND FALSE)
  set(dela_NOT_FOUND_MESSAGE
    "there is no ${_dela_library}; install dela (pip install dela), or in a checkout: pip install -e .")
  return()
endif()

if(NOT TARGET dela::dela)
  add_library(dela::dela SHARED IMPORTED)
  set_target_properties(dela::dela PROPERTIES
    IMPORTED_LOCATION "${_dela_library}"
    INTERFACE_INCLUDE_DIRECTORIES "${_dela_capi}/include")
endif()
