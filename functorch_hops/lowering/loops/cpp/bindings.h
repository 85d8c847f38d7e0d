#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <torch/csrc/inductor/cpp_prefix.h>
#include <cstdlib>
namespace fh {
// Where the elements of a tensor lie: torch's function, whose address its loader puts into the environment.
static void* (*data_of)(PyObject*);
template <typename T> T argument(PyObject* x) {
  if constexpr (std::is_pointer_v<T>) {
    return static_cast<T>(data_of(x));
  } else if constexpr (std::is_floating_point_v<T>) {
    double value = PyFloat_AsDouble(x);
    if (value == -1.0 && PyErr_Occurred()) throw std::runtime_error("expected a float");
    return static_cast<T>(value);
  } else {
    static_assert(std::is_integral_v<T>);
    long long value = PyLong_AsLongLong(x);
    if (value == -1 && PyErr_Occurred()) throw std::runtime_error("expected an int");
    return static_cast<T>(value);
  }
}
// A function of Python's that calls ``kernel``.
template <auto kernel> struct Bound;
template <typename... T, void (*kernel)(T...)> struct Bound<kernel> {
  template <size_t... i> static void call(PyObject* const* args, std::index_sequence<i...>) {
    kernel(argument<T>(args[i])...);
  }
  static PyObject* of_python(PyObject*, PyObject* const* args, Py_ssize_t n) {
    try {
      if (n != sizeof...(T)) throw std::runtime_error("wrong number of arguments");
      call(args, std::index_sequence_for<T...>{});
      Py_RETURN_NONE;
    } catch (std::exception const& e) {
      PyErr_SetString(PyExc_RuntimeError, e.what());
    } catch (...) {
      PyErr_SetString(PyExc_RuntimeError, "unhandled error");
    }
    return nullptr;
  }
};
template <auto kernel> PyMethodDef method(const char* name) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(Bound<kernel>::of_python)), METH_FASTCALL, ""};
}
static PyObject* library(PyMethodDef* methods) {
  const char* address = std::getenv("_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR");
  data_of = reinterpret_cast<decltype(data_of)>(address ? std::strtoull(address, nullptr, 10) : 0);
  if (!data_of) {
    PyErr_SetString(PyExc_RuntimeError, "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR must be set");
    return nullptr;
  }
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "kernel", nullptr, -1, methods};
  PyObject* module = PyModule_Create(&definition);
#ifdef Py_GIL_DISABLED
  if (module) PyUnstable_Module_SetGIL(module, Py_MOD_GIL_NOT_USED);
#endif
  return module;
}
}
