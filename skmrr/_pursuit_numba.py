"""The pursuit of `skmrr.nn.pursuit`, compiled by numba: vector after vector, each step fused.

Instead of the inverse Cholesky factor it keeps, for each chosen atom d_t, the row v_t = D q_t of
inner products with all atoms, q_t being the part of d_t orthogonal to the atoms chosen before
(not normalised: an LDLᵀ factorisation, which takes no square roots). Then

    v_t = G[S_t] − Σ_{j<t} w_tj v_j,   w_tj = v_j[S_t] / p_j,   p_t = ‖q_t‖²

needs no residual either, and γ follows from the unit triangular w by back substitution.

What the code owes to its speed: the number of atoms is frozen into the machine code, so that loops
have no remainder and rows a known distance; absolute values are compared by their bits, as LLVM
turns a maximum of integers into vector instructions, but of floats only if NaN may be ignored;
a row is never read and written in one loop under two names, as that runs scalar; eight rows of
zeros stand before the first, so that sums of four and of eight rows need no special case.
"""

import functools

import numpy as np
from numba import njit

ZERO_ROWS = 8
# Not nnan and ninf: comparisons with NaN must hold what they promise.
_jit = njit(nogil=True, error_model="numpy", fastmath={"reassoc", "nsz", "arcp", "contract"})


@functools.cache
def compiled_pursuit(n_atoms, order_recursive, stop, min_pivot):
    """Kernel ``(correlations, gram, n_nonzero, support, coefficients)`` for `n_atoms` atoms.

    `stop` and `min_pivot` are those of `skmrr.nn.pursuit`. Fast if `n_atoms` is a multiple of 16,
    which zero atoms can make it. All arrays are contiguous; correlations are overwritten, support
    (int32) and coefficients are filled.
    """
    width = np.uint64(n_atoms)
    two, three, four = (np.uint64(rows * n_atoms) for rows in (2, 3, 4))
    five, six, seven = (np.uint64(rows * n_atoms) for rows in (5, 6, 7))
    magnitude = np.int32(0x7FFFFFFF)  # all bits but the sign
    stop, min_pivot = np.float32(stop), np.float32(min_pivot)
    zero = np.uint64(0)

    @_jit
    def largest(values, start):
        top = np.int32(0)
        for i in range(width):
            bits = np.int32(np.float32(values[start + i]).view(np.int32) & magnitude)
            top = bits if bits > top else top
        return top

    @_jit
    def position(values, start, top):
        best = np.int32(n_atoms)
        for i in range(n_atoms):
            bits = np.int32(np.float32(values[start + np.uint64(i)]).view(np.int32) & magnitude)
            candidate = np.int32(np.int32(i) + np.int32(bits != top) * np.int32(n_atoms))
            best = np.int32(min(best, candidate))
        return best

    @_jit
    def advance(source, row, v, t, alpha, start, c):
        """v_t = source, α −= c v_t; return the largest |α|."""
        top = np.int32(0)
        for i in range(width):
            value = source[row + i]
            v[t + i] = value
            value = alpha[start + i] - c * value
            alpha[start + i] = value
            bits = np.int32(np.float32(value).view(np.int32) & magnitude)
            top = bits if bits > top else top
        return top

    @_jit
    def advance4(source, row, v, w, t, k, alpha, start, c):
        """v_t = source − the four rows from k on, α −= c v_t; return the largest |α|."""
        w0, w1, w2, w3 = w[t, k], w[t, k + 1], w[t, k + 2], w[t, k + 3]
        j, here = np.uint64(k) * width, np.uint64(t + ZERO_ROWS) * width
        top = np.int32(0)
        for i in range(width):
            value = source[row + i] - (
                w0 * v[j + i] + w1 * v[j + width + i] + w2 * v[j + two + i] + w3 * v[j + three + i]
            )
            v[here + i] = value
            value = alpha[start + i] - c * value
            alpha[start + i] = value
            bits = np.int32(np.float32(value).view(np.int32) & magnitude)
            top = bits if bits > top else top
        return top

    @_jit
    def eight_weights(w, t, k):
        first = w[t, k], w[t, k + 1], w[t, k + 2], w[t, k + 3]
        return first, (w[t, k + 4], w[t, k + 5], w[t, k + 6], w[t, k + 7])

    @_jit
    def eight_rows(v, j, w0, w1, w2, w3, w4, w5, w6, w7):
        first = w0 * v[j] + w1 * v[j + width] + w2 * v[j + two] + w3 * v[j + three]
        last = w4 * v[j + four] + w5 * v[j + five] + w6 * v[j + six] + w7 * v[j + seven]
        return first + last

    @_jit
    def advance8(source, row, v, w, t, k, alpha, start, c):
        """Do as `advance4` with eight rows."""
        (w0, w1, w2, w3), (w4, w5, w6, w7) = eight_weights(w, t, k)
        j, here = np.uint64(k) * width, np.uint64(t + ZERO_ROWS) * width
        top = np.int32(0)
        for i in range(width):
            value = source[row + i] - eight_rows(v, j + i, w0, w1, w2, w3, w4, w5, w6, w7)
            v[here + i] = value
            value = alpha[start + i] - c * value
            alpha[start + i] = value
            bits = np.int32(np.float32(value).view(np.int32) & magnitude)
            top = bits if bits > top else top
        return top

    @_jit
    def subtract8_from(source, row, v, w, t, k, work):
        (w0, w1, w2, w3), (w4, w5, w6, w7) = eight_weights(w, t, k)
        j = np.uint64(k) * width
        for i in range(width):
            work[i] = source[row + i] - eight_rows(v, j + i, w0, w1, w2, w3, w4, w5, w6, w7)

    @_jit
    def subtract8(v, w, t, k, work):
        (w0, w1, w2, w3), (w4, w5, w6, w7) = eight_weights(w, t, k)
        j = np.uint64(k) * width
        for i in range(width):
            work[i] -= eight_rows(v, j + i, w0, w1, w2, w3, w4, w5, w6, w7)

    @_jit
    def orthogonalise(gram, row, v, w, t, work, alpha, start, c):
        """v_t = G[S_t] − Σ_{j<t} w_tj v_j, α −= c v_t; return the largest |α|."""
        k = t + ZERO_ROWS - 8
        if t <= 4:
            return advance4(gram, row, v, w, t, k + 4, alpha, start, c)
        if t <= 8:
            return advance8(gram, row, v, w, t, k, alpha, start, c)
        first = k - 8
        subtract8_from(gram, row, v, w, t, first, work)
        while first > ZERO_ROWS:
            first -= 8
            subtract8(v, w, t, first, work)
        return advance8(work, zero, v, w, t, k, alpha, start, c)

    @_jit
    def regain(v, t, inverse, remaining, alpha, start, gain):
        """‖(I − P_S) d‖² −= v_t² / p_t; return the largest of α² / ‖(I − P_S) d‖²."""
        top = np.int32(0)
        for i in range(width):
            left = remaining[i] - v[t + i] * v[t + i] * inverse
            remaining[i] = left
            value = alpha[start + i] * alpha[start + i] / max(left, min_pivot)
            value = value if left > min_pivot else np.float32(0)
            gain[i] = value
            bits = np.float32(value).view(np.int32)
            top = bits if bits > top else top
        return top

    @_jit
    def pursue(correlations, gram, n_nonzero, support, coefficients):
        alpha, gram = correlations.reshape(-1), gram.reshape(-1)
        v = np.zeros((n_nonzero + ZERO_ROWS) * n_atoms, np.float32)
        w = np.zeros((n_nonzero, n_nonzero + ZERO_ROWS), np.float32)
        inverses = np.zeros(n_nonzero, np.float32)  # 1 / p_t
        steps = np.zeros(n_nonzero, np.float32)  # c_t
        work, gain = np.empty(n_atoms, np.float32), np.empty(n_atoms, np.float32)
        remaining = np.empty(n_atoms, np.float32)
        for s in range(len(correlations)):
            start = np.uint64(s) * width
            top = largest(alpha, start)
            if order_recursive:
                remaining[:] = 1
            n_chosen = 0
            while n_chosen < n_nonzero:
                t = n_chosen
                if order_recursive and t > 0:
                    best = position(gain, zero, top)
                else:
                    best = position(alpha, start, top)
                correlation = alpha[start + np.uint64(best)]
                pivot = np.float32(1)
                for j in range(t):
                    inner = v[np.uint64(j + ZERO_ROWS) * width + np.uint64(best)]
                    weight = inner * inverses[j]
                    w[t, j + ZERO_ROWS] = weight
                    pivot -= inner * weight
                if abs(correlation) <= stop or pivot <= min_pivot:
                    break
                inverse = np.float32(1) / pivot
                c = correlation * inverse
                inverses[t], steps[t], support[s, t] = inverse, c, best
                n_chosen += 1
                if n_chosen == n_nonzero:
                    break
                row, here = np.uint64(best) * width, np.uint64(t + ZERO_ROWS) * width
                if t == 0:
                    top = advance(gram, row, v, here, alpha, start, c)
                else:
                    top = orthogonalise(gram, row, v, w, t, work, alpha, start, c)
                if order_recursive:
                    top = regain(v, here, inverse, remaining, alpha, start, gain)
            for t in range(n_chosen - 1, -1, -1):
                coefficients[s, t] = steps[t]
                for j in range(t):
                    steps[j] -= w[t, j + ZERO_ROWS] * steps[t]
            support[s, n_chosen:] = 0
            coefficients[s, n_chosen:] = 0

    return pursue
