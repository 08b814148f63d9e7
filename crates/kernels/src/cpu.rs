//! What this CPU can do, found out once at run time, and functions compiled twice accordingly.

use std::sync::OnceLock;

/// Whether AVX2 and FMA can be used.
pub(crate) fn has_avx2_fma() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    #[cfg(target_arch = "x86_64")]
    return *FOUND.get_or_init(|| is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"));
    #[cfg(not(target_arch = "x86_64"))]
    return *FOUND.get_or_init(|| false);
}

/// Whether halves can be converted beside AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_avx2_fma_f16c() -> bool {
    has_avx2_fma() && is_x86_feature_detected!("f16c")
}

/// The instruction set in use, as records and benchmarks name it.
pub fn cpu_features() -> &'static str {
    if has_avx2_fma() { "x86-64 avx2+fma" } else { "portable" }
}

/// Defines a function whose body is compiled for AVX2+FMA and for the base target, and chosen at
/// run time. The body is ordinary Rust in loops that vectorise; both versions do the same
/// operations in the same order, so they give the same bits.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }

                if crate::cpu::has_avx2_fma() {
                    // SAFETY: the features that `avx2` is compiled for were just found on this CPU.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use multiversion;
