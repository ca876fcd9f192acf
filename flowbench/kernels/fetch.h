/* What will be read, or written, soon: for orders that no processor guesses. */

#define FETCH(pointer, bytes, write)                   \
    for (long at_ = 0; at_ < (long)(bytes); at_ += 64) \
        __builtin_prefetch((const char *)(pointer) + at_, write, 2)
