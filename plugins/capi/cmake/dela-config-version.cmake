# The version of the package around this file: `__version__` in dela/__init__.py, which in a checkout
# lies in a folder of its own. A newer minor version of 0.x may change what C programs use.
foreach(_dela_init "../../../__init__.py" "../../../dela/__init__.py")
  get_filename_component(_dela_init "${CMAKE_CURRENT_LIST_DIR}/${_dela_init}" REALPATH)
  if(EXISTS "${_dela_init}")
    file(STRINGS "${_dela_init}" _dela_line REGEX "^__version__ = ")
    string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+" PACKAGE_VERSION "${_dela_line}")
    break()
  endif()
endforeach()

string(REGEX MATCH "^[0-9]+\\.[0-9]+" _dela_minor "${PACKAGE_VERSION}")
string(REGEX MATCH "^[0-9]+\\.[0-9]+" _dela_asked "${PACKAGE_FIND_VERSION}")
if(NOT PACKAGE_VERSION VERSION_LESS PACKAGE_FIND_VERSION
   AND (_dela_minor STREQUAL _dela_asked OR PACKAGE_FIND_VERSION STREQUAL ""))
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
endif()
if(PACKAGE_VERSION STREQUAL PACKAGE_FIND_VERSION)
  set(PACKAGE_VERSION_EXACT TRUE)
endif()
