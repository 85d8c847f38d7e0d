#ifndef FH_TAPE
#define FH_TAPE
namespace fh {
// ``address``: its own; ``bytes``: of the whole tape. These two numbers are its place.
struct TapeHead { int64_t address, bytes, rows, size; };
// Records of equal size behind a head, in memory that grows.
class Tape {
 public:
  explicit Tape(int64_t size) : size_(size) { grow(64); }
  ~Tape() { std::free(memory_); }
  Tape(const Tape&) = delete;
  char* next() {
    if (rows_ == room_) grow(2 * room_);
    return memory_ + sizeof(TapeHead) + size_ * rows_++;
  }
  void hand_over(int64_t* place) {
    place[0] = reinterpret_cast<int64_t>(memory_);
    place[1] = sizeof(TapeHead) + size_ * room_;
    new (memory_) TapeHead{place[0], place[1], rows_, size_};
    memory_ = nullptr;
  }
 private:
  void grow(int64_t room) {
    void* memory = std::realloc(memory_, sizeof(TapeHead) + size_ * room);
    if (!memory) throw std::bad_alloc();
    memory_ = static_cast<char*>(memory);
    room_ = room;
  }
  char* memory_ = nullptr;
  int64_t size_, rows_ = 0, room_ = 0;
};
// Frees the tape that lies at ``place``, if one was handed over.
class TapeOwner {
 public:
  explicit TapeOwner(int64_t* place) : place_(place) { place[0] = 0; }
  ~TapeOwner() { std::free(reinterpret_cast<void*>(place_[0])); }
  TapeOwner(const TapeOwner&) = delete;
 private:
  int64_t* place_;
};
[[maybe_unused]] static const TapeHead& head_of(const int64_t* place, int64_t size) {
  const TapeHead* head = reinterpret_cast<const TapeHead*>(place[0]);
  if (head->address != place[0] || head->bytes != place[1] || head->size != size)
    throw std::runtime_error("this is not the tape of the loop");
  return *head;
}
}
#endif