-- waiting(the last member seen or '', n) -> {member, history or '', recovered}...: what waits, by endpoint and then age.
local after, n = ARGV[1], assert(tonumber(ARGV[2]))
local found, out = redis.call('ZRANGEBYLEX', WAITING, after == '' and '-' or '(' .. after, '+', 'LIMIT', 0, n), {}
for i, one in ipairs(found) do
  local id = string.sub(one, -16)
  out[i] = {one, redis.call('HGET', HISTORY, id) or '', count_of(redis.call('HGET', RECOVERED, id) or '0')}
end
return out
