//! What is queued for the thread that writes (`writer.rs`), and answered after the commit.

use super::{Error, writer::Tx};
use tokio::sync::OwnedSemaphorePermit;

/// A write on its way through the thread.
pub(super) trait Work: Send {
    /// Does it; false: take back what it wrote.
    fn run(&mut self, tx: &mut Tx<'_>) -> bool;
    /// Answers, after the commit or its failure.
    fn finish(self: Box<Self>, committed: Result<(), Error>);
}

/// A write from its two closures.
pub(super) struct Write<F, T, D> {
    pub(super) write: Option<F>,
    pub(super) result: Option<Result<T, Error>>,
    pub(super) done: D,
}

impl<F, T, D> Work for Write<F, T, D>
where
    F: FnOnce(&mut Tx<'_>) -> Result<T, Error> + Send,
    T: Send,
    D: FnOnce(Result<T, Error>) + Send,
{
    fn run(&mut self, tx: &mut Tx<'_>) -> bool {
        let result = self.write.take().map(|write| write(tx));
        let keep = matches!(result, Some(Ok(_)));
        self.result = result;
        keep
    }

    fn finish(self: Box<Self>, committed: Result<(), Error>) {
        let result = match (self.result, committed) {
            (Some(Err(error)), _) | (_, Err(error)) => Err(error),
            (Some(ok), Ok(())) => ok,
            (None, Ok(())) => Err(Error::Internal("a write was not carried out".to_owned())),
        };
        (self.done)(result);
    }
}

/// A queued write.
pub(super) struct Order {
    pub(super) work: Box<dyn Work>,
    pub(super) lazy: bool,
    /// Its place in the bounded queue.
    pub(super) place: Option<OwnedSemaphorePermit>,
}
