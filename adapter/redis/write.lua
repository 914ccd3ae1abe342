-- Appends events to streams and stores the record of the place, all or nothing.
-- KEYS: the streams, and then the place if there is one.
-- ARGV: how many streams, MAXLEN or '', then of a placed write owner, writes so far,
-- writes after, record ('' of an unplaced one); how many forms of entries, and of each
-- how many fields and their names; and for each event: the number of its stream, its
-- offset, the number of its form, the values. Names that each event brought along would
-- be half of all arguments, each of which the server hands to the script one by one.
local streams, maxlen, placed = tonumber(ARGV[1]), ARGV[2], #KEYS > tonumber(ARGV[1])
local place = KEYS[#KEYS]
if placed then
  local now = redis.call('HMGET', place, 'owner', 'writes')
  if (now[1] or '') ~= ARGV[3] then return {'fenced'} end
  if (now[2] or '0') ~= ARGV[4] then return {'forgot', now[2] or '0'} end
  if not redis.acl_check_cmd('HSET', place, 'f', 'v') then return {'denied', 0, 'HSET'} end
end
for i = 1, streams do
  local t = redis.call('TYPE', KEYS[i]).ok
  if t ~= 'stream' and t ~= 'none' then return {'type', i, t} end
  if not redis.acl_check_cmd('XADD', KEYS[i], '*', 'f', 'v') then return {'denied', i, 'XADD'} end
  if not redis.acl_check_cmd('XDEL', KEYS[i], '0-1') then return {'denied', i, 'XDEL'} end
  if not redis.acl_check_cmd('XINFO', 'STREAM', KEYS[i]) then return {'denied', i, 'XINFO'} end
end

local call, unpack, tonumber, type, argv = redis.pcall, unpack, tonumber, type, ARGV
local at, forms = 8, {} -- forms: names where XADD has them, room for values between
for i = 1, tonumber(argv[7]) do
  local form = {fields = {}, n = tonumber(argv[at])}
  for j = 1, form.n do form.fields[2 * j - 1] = argv[at + j] end
  forms[i], at = form, at + form.n + 1
end
local add = function(stream, ms, form) return call('XADD', stream, ms .. '-*', unpack(form.fields, 1, 2 * form.n)) end
if maxlen ~= '' then
  add = function(stream, ms, form) return call('XADD', stream, 'MAXLEN', '~', maxlen, ms .. '-*', unpack(form.fields, 1, 2 * form.n)) end
end

-- newest is the first part of the last id that a stream gave, kept by the server
-- even if the entry is gone.
local function newest(stream)
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return string.match(info[i + 1], '^%d+') end
  end
end

local late, where, ids = {}, {}, {} -- late: of streams whose ids are beyond our offsets
local last, event = #argv, 0
while at < last do
  event = event + 1
  local i, form = tonumber(argv[at]), forms[tonumber(argv[at + 2])]
  local stream, ms, fields = KEYS[i], argv[at + 1], form.fields
  for j = 1, form.n do fields[2 * j] = argv[at + 2 + j] end
  local ahead = late[i]
  if ahead and (#ms < #ahead or #ms == #ahead and ms <= ahead) then ms = ahead end
  local id = add(stream, ms, form)
  if type(id) == 'table' and string.find(id.err, 'equal or smaller', 1, true) then
    late[i] = newest(stream)
    id = add(stream, late[i], form)
  end
  if type(id) == 'table' then -- as if nothing had been
    for n = event - 1, 1, -1 do redis.call('XDEL', where[n], ids[n]) end
    return {'failed', event, id.err}
  end
  where[event], ids[event] = stream, id
  at = at + 3 + form.n
end
if placed then redis.call('HSET', place, 'record', ARGV[6], 'writes', ARGV[5]) end
return {'ok'}
