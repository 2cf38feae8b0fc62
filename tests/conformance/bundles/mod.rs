//! The rules of the OCI runtime specification, checked with runc first (Debian's package), which shows that
//! the checks are right, and then with `insula-runtime`.

mod bundle;
mod escapes;
mod generated;
mod life;
mod limits;
mod notify;
mod process;
mod refusals;
mod surroundings;

pub(super) use bundle::{Bundle, Runtime};

/// A test for every runtime that is here.
macro_rules! for_each_runtime {
    ($($name:ident),* $(,)?) => {
        mod runc {
            $(
                #[test]
                fn $name() {
                    if let Some(runtime) = super::super::Runtime::runc() {
                        super::$name(&runtime);
                    }
                }
            )*
        }
        mod insula {
            $(
                #[test]
                fn $name() {
                    if let Some(runtime) = super::super::Runtime::insula() {
                        super::$name(&runtime);
                    }
                }
            )*
        }
    };
}
pub(super) use for_each_runtime;
