// Textbook patterns of access; the line of each is known to the test by its comment.

__global__ void global_patterns(const float* x, float* y) {  // x has 4096 elements
  int t = threadIdx.x;
  float sum = x[t];                                                  // coalesced
  sum += x[2 * t];                                                   // stride 2
  sum += x[32 * t];                                                  // stride 32
  sum += x[7];                                                       // broadcast
  sum += x[t + 1];                                                   // shifted
  const float4 v = *reinterpret_cast<const float4*>(x + 4 * t);      // vector
  sum += v.x + v.y + v.z + v.w;
  if (t < 8) sum += x[64 + t];                                       // eight lanes
  y[t] = sum;                                                        // store
  atomicAdd(&y[32], 1);                                              // one address
}

__global__ void shared_patterns(float* y) {
  __shared__ __align__(16) float tile[32 * 33], vectors[128];
  int t = threadIdx.x;
  for (int i = 0; i < 33; i++) tile[32 * i + t] = 1;                 // rows
  for (int i = 0; i < 4; i++) vectors[32 * i + t] = 1;
  __syncwarp();
  float sum = tile[2 * t];                                           // two ways
  sum += tile[32 * t];                                               // column
  sum += tile[33 * t];                                               // padded column
  sum += tile[5];                                                    // one word
  const float4 v = *reinterpret_cast<const float4*>(vectors + 4 * t);  // vector
  y[t] = sum + v.x + v.y + v.z + v.w;
}

__global__ void loop(const float* x, float* y) {  // each lane as often as it is long
  float sum = 0;
  for (int i = 0; i <= (int)threadIdx.x % 4; i++) sum += x[32 * i + threadIdx.x];  // load
  y[threadIdx.x] = sum;
}
