-- Record how a claimed job ended, once.
--
-- KEYS: the job's key
-- ARGV: prefix, id, fence, state, result, seconds to keep it
-- Returns 1, or 0 where the job has ended or was given to another: the result is refused.
local _, id, fence, state, result, ttl = unpack(ARGV)
local job = place_of(id)
local held = call('HGET', KEYS[1], 'fence')
if job.state == state and held == fence then return 1 end -- the reply to this call was lost
if job.state ~= 'running' or held ~= fence then
  tally('refused_results')
  return 0
end
finish(job, state, result, ttl)
return 1
