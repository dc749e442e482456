#include "file_rows.h"

#include <cstring>

#include <unistd.h>

bool read_rows(int descriptor, long offset, long D, const std::vector<long>& ids, float* to) {
    for (long id : ids) {
        // Into the row's second half: numbers are widened from the first on, none before it is read.
        uint16_t* halves = (uint16_t*)to + D;
        long bytes = D * 2, done = 0;
        while (done < bytes) {
            ssize_t now = pread(descriptor, (char*)halves + done, bytes - done, offset + id * bytes + done);
            if (now <= 0) return false;
            done += now;
        }
        for (long d = 0; d < D; d++) {
            uint16_t half;
            std::memcpy(&half, halves + d, sizeof half);
            uint32_t word = (uint32_t)half << 16;
            std::memcpy(to + d, &word, sizeof word);
        }
        to += D;
    }
    return true;
}
