-- End a job from outside, queued or running, and tell the workers.
--
-- KEYS: the job's key
-- ARGV: prefix, id, state, result, seconds to keep it
-- Returns 1, or 0 if it had ended, or -1 if there is no such job.
local _, id, state, result, ttl = unpack(ARGV)
local job = place_of(id)
if not job.state then return -1 end
if job.state ~= 'queued' and job.state ~= 'running' then return 0 end
local running = job.state == 'running'
finish(job, state, result, ttl)
if running then call('PUBLISH', P .. 'cancels', id) end
return 1
