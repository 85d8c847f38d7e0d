#ifndef FH_TAPE
#define FH_TAPE
namespace fh {
struct TapeHead { int64_t rows, size; };
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
    new (memory_) TapeHead{rows_, size_};
    place[0] = reinterpret_cast<int64_t>(memory_);
    place[1] = sizeof(TapeHead) + size_ * room_;
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
static const TapeHead& head_of(const int64_t* place, int64_t size) {
  const TapeHead* head = reinterpret_cast<const TapeHead*>(place[0]);
  constexpr int64_t least = sizeof(TapeHead);
  if (place[1] < least || head->size != size || place[1] < least + size * head->rows)
    throw std::runtime_error("the tape of a loop was copied");
  return *head;
}
}
#endif