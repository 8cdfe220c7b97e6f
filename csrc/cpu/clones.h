// Whether functions can have a version per instruction set, among which the loader picks.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define FK_HAS_CLONES 1
#else
#define FK_HAS_CLONES 0
#endif
