-- Add a piece of text to a running job's stream.
--
-- KEYS: the stream, the job's key
-- ARGV: prefix, fence, entries of the stream to keep, about, seconds to keep it, kind, text, sample,
--   at which character of the sample the text begins ("" for other kinds)
-- Returns 1, or 0 where the job was given to another worker, whose text must not mix with this.
local _, fence, length, ttl, kind, piece, sample, at = unpack(ARGV)
local held = read(KEYS[2], 'state', 'fence')
if held.state ~= 'running' or held.fence ~= fence then return 0 end
call('XADD', KEYS[1], 'MAXLEN', '~', length, '*', 'kind', kind, 'text', piece, 'sample', sample,
  'at', at)
call('EXPIRE', KEYS[1], ttl)
return 1
