// From the sums over chunks (see `moments`) to the correlation and what its gradients are made of.
#pragma once
#include "launch.h"

HOST_DEVICE double norm(double squares) {
  const double length = sqrt(squares < 0 ? 0 : squares);  // rounding may leave less than nothing; NaN stays
  return length < 1e-8 ? 1e-8 : length;
}

// partial (rows, chunks, 5) -> rho and summary (4 + 2 rows): cross, own_s, own_t, rho, then a constant per row for the
// student and one for the teacher, with
//   d rho / d student = cross * teacher - own_s * student + constant, and the same with sides exchanged.
template <typename T>
HOST_DEVICE void correlate(int64_t rows, int64_t n, int64_t chunks, const double* partial, const T* student, const T* teacher,
                           T* rho, double* summary) {
  double sum_s = 0, sum_ss = 0, spread_t = 0;
  double *for_student = summary + 4, *for_teacher = for_student + rows;
  for (int64_t r = 0; r < rows; ++r) {  // for_student holds the sums of the student, for_teacher the means of the teacher
    double sums[5] = {0, 0, 0, 0, 0};
    for (int64_t c = 0; c < chunks; ++c)
      for (int m = 0; m < 5; ++m) sums[m] += partial[(r * chunks + c) * 5 + m];
    const double mean_t = sums[2] / (double)n;
    sum_s += sums[0], sum_ss += sums[1], spread_t += sums[3] - sums[2] * mean_t;
    for_student[r] = sums[0], for_teacher[r] = mean_t;
    summary[3] = (r ? summary[3] : 0) + sums[4] - sums[0] * mean_t;
  }
  const double mean_s = sum_s / (double)(rows * n), norm_s = norm(sum_ss - sum_s * mean_s), norm_t = norm(spread_t);
  const double cross = 1 / (norm_s * norm_t), correlation = summary[3] * cross;
  const double own_s = norm_s > 1e-8 ? correlation / (norm_s * norm_s) : 0;
  const double own_t = norm_t > 1e-8 ? correlation / (norm_t * norm_t) : 0;
  const double first_s = (double)student[0];
  for (int64_t r = 0; r < rows; ++r) {
    const double row_s = for_student[r] / (double)n, row_t = for_teacher[r] + (double)teacher[r * n];
    for_student[r] = own_s * (mean_s + first_s) - cross * row_t;
    for_teacher[r] = own_t * row_t - cross * (row_s + first_s);
  }
  summary[0] = cross, summary[1] = own_s, summary[2] = own_t, summary[3] = correlation;
  *rho = (T)correlation;
}
