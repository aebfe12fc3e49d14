/* Stands in for bcryptprimitives.dll, which Rust's standard library needs and Wine has from 9.0 on. Only for tests. */

#include <windows.h>
/* after it */
#include <ntsecapi.h>

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T size) { return RtlGenRandom(data, (ULONG)size); }
