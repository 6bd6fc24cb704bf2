//! Leases: an attempt belongs to its agent while that one is heard. After a silence as long as the lease, what may go on at
//! another agent of the site does.
//!
//! An attempt whose ticket says `free` never moves: its site had one agent. The others may only have their final effect
//! with a grant that is stored here first, so:
//!
//! | accepted | granted | then |
//! |---|---|---|
//! | no | no | queued again as if it had never been offered |
//! | yes | no | nothing that needs a grant can have happened: queued again |
//! | yes | yes | another agent finds out whether it happened, and finishes it; `unknown` if the operation cannot tell |

use super::{Error, agents::open_attempts, attempts, transition::Event, writer::Tx};
use passerelle_protocol::{AgentId, CommitMode, session::Attempt};

/// Takes from a silent agent what may move.
pub(super) fn run_out(tx: &mut Tx<'_>, agent: AgentId) -> Result<(), Error> {
    let mut moved = 0;
    for (job, row) in open_attempts(tx.conn, agent)? {
        if row.commit == CommitMode::Free {
            continue;
        }
        moved += 1;
        if row.accepted_at.is_none() && !job.facts.granted {
            attempts::not_held(tx, &job, &row, row.repeat)?;
        } else {
            attempts::release(tx, agent, Attempt::new(job.id, row.number));
            attempts::give_up(tx, &job, &row, Event::Moved { repeat: row.repeat })?;
        }
    }
    if moved > 0 {
        tracing::warn!(agent_id = %agent, attempts = moved, "An agent was not heard for too long: its attempts move");
    }
    Ok(())
}
